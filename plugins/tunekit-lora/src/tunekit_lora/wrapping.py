"""Models that PEFT wraps, whatever the method: fresh, saved, opened again, and counted on the meta device."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tunekit.values import BYTES, DEFAULT_ADAPTER, Estimate, EstimateRequest, ModelBundle

from .named import activate_, is_adapted, peft_name


def wrap(bundle: ModelBundle, settings: Any) -> Any:
    """Put a fresh adapter of a `peft.PeftConfig` on the model, beside any it carries, and make it the active one.

    What trains is stored in the dtype of the policy.
    """
    import peft

    with peft_reading_old_names():
        if is_adapted(bundle.model):
            model = bundle.model
            model.add_adapter(peft_name(bundle.adapter_name), settings)
            activate_(model, bundle.adapter_name)
        else:
            model = peft.get_peft_model(bundle.model, settings, adapter_name=peft_name(bundle.adapter_name))
            save_alone_(model)
    cast_trainable_(model, bundle.precision.trainable)
    return model


def save_alone_(model: Any) -> None:
    """Have this model save its adapter and nothing of the base.

    PEFT would add both embeddings to the result and to every checkpoint, wherever these have grown or get an update.
    """
    model.save_pretrained = partial(type(model).save_pretrained, model, save_embedding_layers=False)


def write(model: Any, folder: Path) -> None:
    """Write the active adapter in PEFT's format."""
    (name,) = model.active_adapters  # PEFT's name for it
    model.save_pretrained(str(folder), selected_adapters=[name])
    if name != DEFAULT_ADAPTER:  # PEFT puts any other into a folder of its own inside
        for path in (folder / name).iterdir():
            path.rename(folder / path.name)
        (folder / name).rmdir()


def open_saved(bundle: ModelBundle) -> Any:
    """Load the saved adapter of a bundle, ready to train on, with the very numbers that were saved.

    It is in evaluation mode.
    """
    import peft

    folder, name = str(bundle.saved_adapter), peft_name(bundle.adapter_name)
    with peft_reading_old_names():
        if is_adapted(bundle.model):
            model = bundle.model
            model.load_adapter(folder, adapter_name=name, is_trainable=True)
            activate_(model, bundle.adapter_name)
        else:
            model = peft.PeftModel.from_pretrained(bundle.model, folder, adapter_name=name, is_trainable=True)
            save_alone_(model)
    cast_trainable_(model, bundle.precision.trainable)
    # Once more in the dtype it was trained in: PEFT loads modules_to_save in that of the base, which may hold less.
    weights = peft.utils.load_peft_weights(folder, device="cpu")
    peft.set_peft_model_state_dict(model, weights, adapter_name=name)
    return model.eval()


def saved_settings(folder: Path) -> Any:
    """PEFT's configuration of a saved adapter, as of one that is to be trained on."""
    import peft

    settings = peft.PeftConfig.from_pretrained(str(folder))
    settings.inference_mode, settings.base_model_name_or_path = False, None
    return settings


def estimate_wrapped(settings: Any, request: EstimateRequest, estimate: Estimate) -> Estimate:
    """Wrap the skeleton on the meta device and add the adapter's parameters and bytes."""
    import peft

    with peft_reading_old_names():
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


def cast_trainable_(model: Any, dtype: str) -> None:
    """Store every parameter that trains in `dtype`; frozen ones stay as they were loaded.

    `peft.prepare_model_for_kbit_training` is not used: it also stores all frozen floating-point weights in fp32.
    """
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(getattr(torch, dtype))


@contextmanager
def peft_reading_old_names() -> Iterator[None]:
    """Keep from the user what no user can act on: a warning about a name that PEFT reads from transformers.

    And the banner that gptqmodel prints when it is imported, as PEFT does wherever it is installed.
    """
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.* is deprecated", category=FutureWarning)
        yield
