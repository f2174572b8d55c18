"""Which attention keeps the sequences of a model apart: the engine's own, that of a plugin, or the library's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from .segments import NAME, segments_mask

NATIVE = frozenset({"flash_attention_2", "flash_attention_3", "flex_attention"})
"""Implementations of transformers that keep sequences apart themselves: by the borders that flash attention takes, or
by the mask that is made from restarting positions. So do kernels from the hub, whose names have a slash."""


@dataclass(frozen=True)
class Traits:
    """What the engine has to know of an attention that keeps sequences apart.

    `sharing`: why a prompt that several sequences share cannot be computed once, None where it can. `evaluation`: how
    the model computes otherwise when it is evaluated, None where it does not. `on_device`: whether borders have to be
    where the model is.
    """

    sharing: str | None = None
    evaluation: str | None = None
    on_device: bool = False


class SegmentAttention(ABC):
    """An attention of a plugin that computes sequences laid end to end, none of which sees another.

    It is called as every attention in transformers' `AttentionInterface` is. Where sequences lie end to end, there is
    no mask, and `cu_seq_lens_q` and `cu_seq_lens_k` [segments + 1] say where each begins and ends, as in flash
    attention; otherwise it is given SDPA's mask, or none for plain causal attention. A model uses it once its own
    `set_attn_implementation` was given the name that `register` was.
    """

    traits: Traits = Traits()

    @abstractmethod
    def __call__(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """Attend: `query` [batch, heads, seq, head_dim], keys and values with their own heads.

        Returns [batch, seq, heads, head_dim], and no attention weights.
        """


def register(name: str, attention: SegmentAttention) -> None:
    """Make an attention known under a name. Begin it with `tunekit_`, so that no model uses it unless it is told to."""
    assert name.startswith("tunekit_"), f"{name} could be a name that transformers gives to something else"
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, segments_mask)


def attention_named(name: str) -> Any:
    """The attention of this name, None where the name means nothing, or the model's own."""
    return AttentionInterface().get(name)  # type: ignore[no-untyped-call]


class Used(NamedTuple):
    """The attention that a model computes sequences laid end to end with: its name, and what is special about it."""

    name: str
    traits: Traits


def attention_of(model: Any) -> Used:
    """What this transformers model keeps sequences apart with: what it was set to where that can, else the segments."""
    name = model.config._attn_implementation
    attention = attention_named(name)
    if isinstance(attention, SegmentAttention):
        return Used(name, attention.traits)
    if name in NATIVE or "/" in str(name):
        return Used(name, Traits(sharing=f"{name} cannot attend to a prompt that lies elsewhere", on_device=True))
    return Used(NAME, Traits())
