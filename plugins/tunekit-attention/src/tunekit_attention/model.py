"""The chosen attention on a model: whether its own code knows it, and scores written out in every layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunekit.errors import PlanError, Problem, TunekitError
from tunekit.values import Report
from tunekit_train.attentions import SegmentAttention, register
from tunekit_train.segments import segments_attention

from . import AttentionConfig
from .choosing import IMPLEMENTATIONS, PACKAGES, Choice

EAGER = "tunekit_eager"
FLASH = (IMPLEMENTATIONS["flash2"], IMPLEMENTATIONS["flash3"])


class WrittenOut(SegmentAttention):
    """Scores as a matrix, softmax, product: in sequences laid end to end, in padded batches, and with a cache."""

    def __call__(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """Attend, see `SegmentAttention`."""
        return segments_attention(module, query, key, value, attention_mask, written_out=True, **options)


register(EAGER, WrittenOut())


def refuse_unsuited(skeleton: Any, choice: Choice, training: bool) -> None:
    """Raise PlanError where the code of this model, on the meta device, cannot compute with what the recipe names."""
    obstacle = unsuited(base_of(skeleton), choice.implementation, training) if choice.firm else None
    if obstacle is not None:
        raise PlanError([Problem("use.attention.kind", f"is {choice.kind}, but {obstacle}", "use auto or eager")])


def told(skeleton: Any, choice: Choice) -> str:
    """What this model, on the meta device, will compute with, and why."""
    model = base_of(skeleton)
    own, kind = str(model.config._attn_implementation), type(model).__name__
    if choice.firm:
        return f"{choice.implementation}, {choice.reason}"
    if choice.implementation is not None and not knows_flash(type(model), choice.implementation):
        return f"{own}, since the code of {kind} has no {choice.implementation}"
    name = choice.implementation or own
    without = f"; the code of {kind} has no {choice.kind}" if name == own != IMPLEMENTATIONS[choice.kind] else ""
    return f"{name}, {choice.reason}{without}"


def base_of(skeleton: Any) -> Any:
    """The model of transformers, without an adapter around it."""
    return skeleton.get_base_model() if hasattr(skeleton, "get_base_model") else skeleton


def prefer_(config: Any, implementation: str) -> None:
    """Have the model of a config made with a kind of FlashAttention where its class knows it, in place.

    Classes that a repository brings with it are not asked: they are made with what transformers chooses.
    """
    import transformers

    mappings = (transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
    kinds = [mapping[type(config)] for mapping in mappings if type(config) in mapping]
    if kinds and knows_flash(kinds[0], implementation):
        config._attn_implementation = implementation


def knows_flash(kind: Any, implementation: str) -> bool:
    """Whether a class of models computes with a kind of FlashAttention, and not with another in its place."""
    compatible = getattr(kind, "_compatible_flash_implementations", None)
    return bool(getattr(kind, "_supports_flash_attn", False)) and implementation in (compatible or [implementation])


def unsuited(model: Any, implementation: str | None, training: bool) -> str | None:
    """Say why this model cannot compute with an implementation, or None."""
    kind, config = type(model).__name__, model.config.get_text_config()
    if implementation == "sdpa" and getattr(config, "attn_logit_softcapping", None):
        return f"sdpa knows no soft caps, and {kind} caps its scores"
    if implementation == "flex_attention" and training and getattr(config, "attention_dropout", None):
        return f"FlexAttention has no dropout, and {kind} drops {config.attention_dropout:g} of its scores in training"
    if implementation in FLASH and not knows_flash(type(model), implementation):
        return f"the code of {kind} has no {implementation}"
    if implementation not in ("sdpa", "flex_attention"):
        return None  # written-out scores suit every model; a kernel from the hub is asked when the model is loaded
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(implementation)
    except (ValueError, ImportError):
        return f"the code of {kind} has no {implementation}"
    model.set_attn_implementation(before)
    return None


def set_(model: Any, config: AttentionConfig) -> Report:
    """Give the model the attention that the options name.

    What needs a package was decided when the model was loaded, as `auto` was: a run may be opened without it.
    """
    before = model.config._attn_implementation
    wanted = before if config.kind in ("auto", *PACKAGES) else IMPLEMENTATIONS[config.kind]
    if (obstacle := unsuited(model, None if wanted == before else wanted, model.training)) is not None:
        raise TunekitError(f"use.attention.kind is {config.kind}, but {obstacle}", "use auto or eager")
    chosen = EAGER if config.kind == "eager" else wanted
    if config.kind == "eager" and not model._can_set_attn_implementation():
        chosen = "eager"  # the model's own, which it computes with in padded batches
    model.set_attn_implementation(chosen)
    return Report(f"attention: {wanted}", {"implementation": chosen}, lambda: model.set_attn_implementation(before))
