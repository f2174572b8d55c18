"""Putting low-rank adapters on a model with PEFT: fresh, saved, and on the meta device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.errors import PlanError, Problem, TunekitError
from tunekit.values import Calls, Context, Estimate, EstimateRequest, ModelBundle, Plan

from . import Lora, LoraConfig
from .named import bare
from .patterns import alphas
from .saved import read_settings
from .stacking import require_same
from .starting import stages_of, target_problems
from .targets import choose, is_named, shorten, tied_embeddings
from .wrapping import estimate_wrapped, open_saved, saved_settings, wrap, write

if TYPE_CHECKING:
    import peft


def peft_config(config: LoraConfig, model: Any, calls: Calls, tokenizer: Any = None) -> peft.LoraConfig:
    """Translate the options for this model and let every planned plugin change the result."""
    import peft

    chosen, saves = choose(model, config, tokenizer), list(config.modules_to_save)
    tied = any(is_named(end, saved) for end in tied_embeddings(model) for saved in saves)
    return calls.chain(  # type: ignore[no-any-return]
        "tunekit_lora_config",
        "config",
        peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=config.rank,
            lora_alpha=config.scale_numerator,  # type: ignore[arg-type]
            lora_dropout=config.dropout,
            use_rslora=config.rslora,
            rank_pattern=dict(config.rank_pattern),
            alpha_pattern=alphas(config),
            target_modules=shorten(model, chosen.layers),
            target_parameters=chosen.parameters or None,
            trainable_token_indices=chosen.tokens or None,
            modules_to_save=saves or None,
            ensure_weight_tying=tied,
        ),
        model=model,
    )


def attach(config: LoraConfig, bundle: ModelBundle, context: Context) -> Any:
    """Put a fresh adapter on the model: the same for the same seed, whatever drew random numbers before."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(context.seed)
        settings = peft_config(config, bare(bundle.model), context.calls, bundle.tokenizer)
        model = wrap(bundle, settings)
        return context.calls.chain("tunekit_lora_attached", "model", model, bundle=bundle, context=context)


def save(model: Any, folder: Path, calls: Calls) -> None:
    """Write the active adapter in PEFT's format, and let every planned plugin change what was written."""
    write(model, folder)
    calls.chain("tunekit_lora_saved", "folder", folder, model=model)


def reopen(bundle: ModelBundle, context: Context) -> Any:
    """Load a trained adapter with the very numbers that were saved: to answer with, or for a next stage to train on.

    Raises TunekitError where it is no LoRA, and where it stands on another adapter than the model's weights hold.
    """
    folder = Path(bundle.saved_adapter or "")
    if read_settings(folder) is None:
        raise TunekitError(f"{folder} holds no LoRA adapter in PEFT's format", "name the folder of one that was saved")
    require_same(folder, bare(bundle.model))
    model = open_saved(bundle)
    return context.calls.chain("tunekit_lora_reopened", "model", model, folder=bundle.saved_adapter)


def estimate_adapter(plugin: Lora, request: EstimateRequest, estimate: Estimate) -> Estimate:
    """Wrap the skeleton on the meta device, as the adapter that it begins with, and add its parameters and bytes."""
    assert estimate.skeleton is not None, "the loader's estimate comes before the adapter's"
    assert request.calls is not None, "an estimate of LoRA needs the calls, for the plugins that change its config"
    _refuse_other_targets(plugin, request.plan, estimate)
    begun = request.started
    if begun is None:
        settings = peft_config(plugin.config, estimate.skeleton, request.calls, estimate.tokenizer)
    else:
        settings = saved_settings(begun.folder)
    # Shapes do not depend on how an adapter is initialised, and some ways read weights, which a skeleton has not.
    settings = replace(settings, init_lora_weights=True)
    try:
        return estimate_wrapped(settings, request, estimate)
    except ValueError as error:
        if begun is None:
            raise
        what = f"{begun.folder} does not fit the model: {' '.join(str(error).split())[:300]}"
        raise PlanError([Problem(begun.key, what, "name an adapter of this model")]) from error


def _refuse_other_targets(plugin: Lora, plan: Plan, estimate: Estimate) -> None:
    """Raise PlanError where a stage is to begin with an adapter of other parts than those that were asked for."""
    chosen = choose(estimate.skeleton, plugin.config, estimate.tokenizer)
    known = [name for name, _ in estimate.skeleton.named_modules()]
    found = [one for stage in stages_of(plugin, plan) for one in target_problems(plugin.config, stage, chosen, known)]
    if found:
        raise PlanError(found)
