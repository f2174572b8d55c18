"""How the model is run on a batch: which strategy, why, and the forward that needs are provided from."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tunekit.errors import PlanError, Problem

from .config import Padding
from .layout import Layout, lay_end_to_end, lay_padded
from .objective import Batch

StrategyName = Literal["segments", "padded"]


@dataclass(frozen=True)
class Strategy:
    """How batches are laid out and run, and why that way."""

    name: StrategyName
    reason: str
    padding_id: int = 0

    def lay_out(self, batch: Batch) -> Layout:
        """Turn a batch into tensors."""
        if self.name == "segments":
            return lay_end_to_end(batch.sequences)
        return lay_padded(batch.sequences, self.padding_id)


def choose_strategy(model: Any, padding: Padding, padding_id: int, key: str) -> Strategy:
    """Choose the cheapest exact strategy for this model.

    Raises:
        PlanError: `padding` is `never` and the model cannot do without.
    """
    if padding == "always":
        return Strategy("padded", "batch.padding is always", padding_id)
    obstacle = segments_obstacle(model)
    if obstacle is None:
        return Strategy("segments", f"{base_model(model).config.model_type} attends inside each sequence exactly")
    if padding == "never":
        where = f"{key}.batch.padding"
        raise PlanError([Problem(where, f"padding is never, but {obstacle}", "use padding: auto or always")])
    return Strategy("padded", obstacle, padding_id)


def segments_obstacle(model: Any) -> str | None:
    """Say why sequences of this model cannot be laid end to end, or None where they can."""
    from .segments import FAMILIES

    base = base_model(model)
    if base.config.model_type not in FAMILIES or not type(base).__module__.startswith("transformers."):
        return f"{base.config.model_type} is not among the models verified without padding"
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "a prompt-learning adapter puts its own tokens in front of each row"
    if not base._can_set_attn_implementation():
        return f"{type(base).__name__} does not let its attention be switched"
    return None


def base_model(model: Any) -> Any:
    """The transformers model inside an adapter, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def prepared(model: Any, strategy: Strategy, autocast: bool) -> Iterator[None]:
    """Make this model instance ready for the strategy, and put everything back afterwards."""
    base = base_model(model)
    with ExitStack() as stack:
        stack.callback(setattr, base.config, "use_cache", base.config.use_cache)
        if strategy.name == "segments":
            from . import segments

            stack.enter_context(segments.switched(base, segments.NAME))
        if autocast and model is not base:
            from peft.helpers import disable_input_dtype_casting

            # Autocast casts the adapter's fp32 weights down; without this every input is first cast up to them.
            stack.enter_context(disable_input_dtype_casting(model))
        yield


class Forward:
    """One batch and the model to run it through. Needs ask it for what they are made of."""

    def __init__(self, model: Any, batch: Batch, layout: Layout) -> None:
        self.model, self.batch, self.layout = model, batch, layout

    def logits(self, positions: Tensor) -> Tensor:
        """Run the model with its head at these positions only; returns [positions, vocab], which the caller owns.

        `positions` are flat in batch x seq and ascending.
        """
        arguments = self._arguments()
        layout = self.layout
        whole = "logits_to_keep" not in inspect.signature(_forward_of(self.model)).parameters
        if not whole:
            arguments["logits_to_keep"] = positions if layout.attention_mask is None else self._mask(positions)
        with self._borders():
            logits: Tensor = self.model(**arguments, use_cache=False).logits
        logits = logits.reshape(-1, logits.shape[-1])
        return logits[positions] if whole else logits

    def _arguments(self) -> dict[str, Any]:
        layout = self.layout
        if layout.attention_mask is not None:
            return {"input_ids": layout.input_ids, "attention_mask": layout.attention_mask}
        # Borders stay on the CPU: the segments are a loop on the host, and reading them must not wait for the device.
        borders = torch.tensor((0, *layout.lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
        longest = max(layout.lengths)
        return {
            "input_ids": layout.input_ids,
            "position_ids": layout.position_ids,
            "cu_seq_lens_q": borders,
            "cu_seq_lens_k": borders,
            "max_length_q": longest,
            "max_length_k": longest,
        }

    def _mask(self, positions: Tensor) -> Tensor:
        mask = torch.zeros(self.layout.input_ids.numel(), dtype=torch.bool, device=positions.device)
        mask[positions] = True
        return mask.view_as(self.layout.input_ids)  # [batch, seq]

    def _borders(self) -> Any:
        if self.layout.attention_mask is not None:
            return nullcontext()
        from .segments import borders_given

        return borders_given()


def _forward_of(model: Any) -> Any:
    inner = model.module if hasattr(model, "module") else model  # a distributed wrapper
    return base_model(inner).forward
