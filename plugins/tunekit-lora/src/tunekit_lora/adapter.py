"""Putting low-rank adapters on a model with PEFT: fresh, saved, and on the meta device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.errors import PlanError
from tunekit.values import BYTES, DEFAULT_ADAPTER, Calls, Context, Estimate, EstimateRequest, ModelBundle, Plan

from . import Lora, LoraConfig
from .named import activate_, bare, is_adapted, peft_name
from .starting import stages_of, target_problems
from .targets import choose_targets, is_named, shorten, tied_embeddings

if TYPE_CHECKING:
    import peft


def peft_config(config: LoraConfig, model: Any, calls: Calls) -> peft.LoraConfig:
    """Translate the options for this model and let every planned plugin change the result."""
    import peft

    chosen = choose_targets(model, config)
    saves = list(config.modules_to_save)
    return calls.chain(  # type: ignore[no-any-return]
        "tunekit_lora_config",
        "config",
        peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=config.rank,
            lora_alpha=config.scale_numerator,  # type: ignore[arg-type]
            lora_dropout=config.dropout,
            use_rslora=config.rslora,
            target_modules=shorten(model, chosen),
            modules_to_save=saves or None,
            ensure_weight_tying=any(is_named(end, saved) for end in tied_embeddings(model) for saved in saves),
        ),
    )


def attach(config: LoraConfig, bundle: ModelBundle, context: Context) -> Any:
    """Put a fresh adapter on the model: the same for the same seed, whatever drew random numbers before."""
    import peft
    import torch

    with torch.random.fork_rng(), _peft_reading_old_names():
        torch.manual_seed(context.seed)
        settings = peft_config(config, bare(bundle.model), context.calls)
        if is_adapted(bundle.model):
            model = bundle.model
            model.add_adapter(peft_name(bundle.adapter_name), settings)
            activate_(model, bundle.adapter_name)
        else:
            model = peft.get_peft_model(bundle.model, settings, adapter_name=peft_name(bundle.adapter_name))
        cast_trainable_(model, bundle.precision.trainable)
        return context.calls.chain("tunekit_lora_attached", "model", model)


def save(model: Any, folder: Path, calls: Calls) -> None:
    """Write the active adapter in PEFT's format, and let every planned plugin change what was written."""
    (name,) = model.active_adapters  # PEFT's name for it
    model.save_pretrained(str(folder), selected_adapters=[name])
    if name != DEFAULT_ADAPTER:  # PEFT puts any other into a folder of its own inside
        for path in (folder / name).iterdir():
            path.rename(folder / path.name)
        (folder / name).rmdir()
    calls.chain("tunekit_lora_saved", "folder", folder, model=model)


def reopen(bundle: ModelBundle, context: Context) -> Any:
    """Load a trained adapter with the very numbers that were saved: to answer with, or for a next stage to train on."""
    import peft

    folder, name = str(bundle.saved_adapter), peft_name(bundle.adapter_name)
    with _peft_reading_old_names():
        if is_adapted(bundle.model):
            model = bundle.model
            model.load_adapter(folder, adapter_name=name, is_trainable=True)
            activate_(model, bundle.adapter_name)
        else:
            model = peft.PeftModel.from_pretrained(bundle.model, folder, adapter_name=name, is_trainable=True)
    cast_trainable_(model, bundle.precision.trainable)
    # Once more in the dtype it was trained in: PEFT loads modules_to_save in that of the base, which may hold less.
    weights = peft.utils.load_peft_weights(folder, device="cpu")
    peft.set_peft_model_state_dict(model, weights, adapter_name=name)
    return context.calls.chain("tunekit_lora_reopened", "model", model.eval(), folder=bundle.saved_adapter)


def estimate_adapter(plugin: Lora, request: EstimateRequest, estimate: Estimate) -> Estimate:
    """Wrap the skeleton on the meta device and add the adapter's parameters and bytes."""
    import peft

    config = plugin.config
    assert estimate.skeleton is not None, "the loader's estimate comes before the adapter's"
    assert request.calls is not None, "an estimate of LoRA needs the calls, for the plugins that change its config"
    _refuse_other_targets(plugin, request.plan, estimate.skeleton)
    settings = peft_config(config, estimate.skeleton, request.calls)
    # Shapes do not depend on how an adapter is initialised, and some ways read weights, which a skeleton has not.
    settings = replace(settings, init_lora_weights=True)
    with _peft_reading_old_names():
        skeleton = peft.get_peft_model(estimate.skeleton, settings, low_cpu_mem_usage=True)
    cast_trainable_(skeleton, request.load.precision.trainable)
    trainable = sum(parameter.numel() for parameter in skeleton.parameters() if parameter.requires_grad)
    # Each of the others is taken to be as large as this one; a stage may give them other options.
    added = trainable * BYTES[request.load.precision.trainable] * max(1, len(request.plan.adapters))
    return replace(
        estimate,
        skeleton=skeleton,
        parameters=sum(parameter.numel() for parameter in skeleton.parameters()),
        trainable=trainable,
        memory=estimate.with_memory(weights=estimate.memory.get("weights", 0) + added),
    )


def _refuse_other_targets(plugin: Lora, plan: Plan, skeleton: Any) -> None:
    """Raise PlanError where a stage is to begin with an adapter of other layers than those that were asked for."""
    chosen = choose_targets(skeleton, plugin.config)
    known = [name for name, _ in skeleton.named_modules()]
    found = [one for stage in stages_of(plugin, plan) for one in target_problems(plugin.config, stage, chosen, known)]
    if found:
        raise PlanError(found)


def cast_trainable_(model: Any, dtype: str) -> None:
    """Store every parameter that trains in `dtype`; frozen ones stay as they were loaded.

    `peft.prepare_model_for_kbit_training` is not used: it also stores all frozen floating-point weights in fp32.
    """
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(getattr(torch, dtype))


@contextmanager
def _peft_reading_old_names() -> Iterator[None]:
    """Keep from the user a warning about a name that PEFT reads from transformers, which no user can act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.* is deprecated", category=FutureWarning)
        yield
