"""What TRL's trainers change in a model they are given, and how it is taken back."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunekit.errors import TunekitError
from tunekit.values import ModelBundle
from tunekit_train.forward import base_model
from tunekit_train.heads import without_head

OWN, REFERENCE = "default", "ref"
"""TRL's names for the adapter that trains and for its copy from the start of the stage."""


@contextmanager
def head_with_bias(model: Any) -> Iterator[None]:
    """Let a head of which single rows train show its bias, which TRL asks every head for.

    PEFT's wrapper shows the weight, those rows in it, and has no bias of its own. None has to be shown as well.
    """
    head = model.get_output_embeddings()
    if not hasattr(head, "token_adapter") or hasattr(head, "bias"):
        yield
        return
    object.__setattr__(head, "bias", getattr(head.original_module, "bias", None))
    try:
        yield
    finally:
        object.__delattr__(head, "bias")


@contextmanager
def deprecations() -> Iterator[None]:
    """Say nothing of an option that transformers has renamed: TRL sets it, and PEFT reads it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)
        yield


@contextmanager
def lent(model: Any) -> Iterator[None]:
    """Lend a model to a trainer, which gives it a forward of its own and a token for padding."""
    inner = base_model(model)
    before = [(each, vars(each).get("forward")) for each in dict.fromkeys((model, inner))]
    configs = [(each, each.pad_token_id) for each in (inner.config.get_text_config(), inner.generation_config) if each]
    try:
        with without_head(model):
            yield
    finally:
        for module, forward in before:
            for name in ("forward", "_original_forward"):
                vars(module).pop(name, None)
            if forward is not None:
                module.forward = forward
        for config, padding in configs:
            config.pad_token_id = padding


@contextmanager
def reference(bundle: ModelBundle, beta: float, folder: Path) -> Iterator[str]:
    """Let the trainer find the policy as it is now, where a divergence from it is wanted, and say how it does.

    TRL copies an adapter beside itself. A whole model it reads from where its config says it came from: from `folder`
    then, where it is written first. What has come of it is taken away at the end.
    """
    model = bundle.model
    if beta == 0:
        yield "none: beta is 0"
        return
    if (adapters := getattr(model, "peft_config", None)) is not None:
        _refuse(model, adapters)
        try:
            yield "a copy of the adapter"
        finally:
            if REFERENCE in model.peft_config:
                model.delete_adapter(REFERENCE)
        return
    came_from = model.config.name_or_path
    try:
        with without_head(model):
            model.save_pretrained(str(folder))
        model.config.name_or_path = str(folder)
        yield "a copy of the model"
    finally:
        model.config.name_or_path = came_from
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def kept(bundle: ModelBundle) -> Iterator[None]:
    """Give parameters that train on a quantised base their values back: TRL rounds them to bf16 while it is made."""
    named = {} if bundle.quantization is None else dict(bundle.model.named_parameters())
    before = {name: each.data for name, each in named.items() if each.requires_grad}
    yield
    for name, value in before.items():
        named[name].data = value


def _refuse(model: Any, adapters: Any) -> None:
    """TRL's copy is of the adapter `default` and holds nothing beside it."""
    remedy = "set beta to 0"
    if OWN not in adapters or REFERENCE in adapters:
        names = ", ".join(adapters)
        raise TunekitError(f"beta wants a copy of the adapter {OWN}, and the model has {names}", remedy)
    named = (name for name, each in model.named_parameters() if each.requires_grad and f".{OWN}." not in name)
    if (outside := next(named, None)) is not None:
        raise TunekitError(f"beta wants a copy of all that trains, and {outside} lies outside the adapter", remedy)
