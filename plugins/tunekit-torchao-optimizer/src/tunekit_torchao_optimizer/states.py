"""The optimisers of torchao, and what their states take."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torchao.optim import AdamW4bit, AdamW8bit, AdamWFp8  # type: ignore[import-untyped]

from tunekit.values import BYTES, Estimate, OptimizerSettings
from tunekit_train.adamw import decay_groups
from tunekit_train.estimate import states_estimate

from . import BLOCK, TorchaoOptimizerConfig

SMALLEST = 4096
"""Parameters with fewer numbers, or a number that no block divides, keep plain states (torchao's own)."""
VALUES: dict[str, int] = {"8bit": 256, "4bit": 16, "fp8": 0}
"""Entries of the table of values that codes stand for; each state has one of its own."""
CODE: dict[str, float] = {"8bit": 1, "4bit": 0.5, "fp8": 1}
"""Bytes of a code."""


class Steps:
    """A step of torchao that is compiled only where that is asked for: torchao itself always compiles."""

    compiled: bool = False

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step."""
        with nullcontext() if self.compiled else torch.compiler.set_stance("force_eager"):
            return super().step(closure)  # type: ignore[misc]


class EightBit(Steps, AdamW8bit):  # type: ignore[misc]
    """Moments in 256 values."""


class FourBit(Steps, AdamW4bit):  # type: ignore[misc]
    """Moments in 16 values."""


class Float8(Steps, AdamWFp8):  # type: ignore[misc]
    """Moments as 8-bit floats."""


CLASSES: dict[str, Any] = {"8bit": EightBit, "4bit": FourBit, "fp8": Float8}


def make_optimizer(config: TorchaoOptimizerConfig, named: list[tuple[str, Any]], settings: OptimizerSettings) -> Any:
    """The class of torchao for the way states are stored. Its learning rates are tensors."""
    optimizer = CLASSES[config.states](
        decay_groups(named, settings.weight_decay),
        lr=settings.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=settings.weight_decay,
        block_size=config.block or BLOCK[config.states],
        bf16_stochastic_round=config.stochastic_rounding,
    )
    optimizer.compiled = config.compile
    return optimizer


def estimate_states(config: TorchaoOptimizerConfig, dtype: str, estimate: Estimate) -> Estimate:
    """Add two moments of all that trains in the skeleton, at `dtype` where they are too small to be coded."""
    block = config.block or BLOCK[config.states]

    def bytes_of(parameter: Any) -> float:
        size = int(parameter.numel())
        if size < SMALLEST or size % block:
            return 2 * BYTES[dtype] * size
        return 2 * (CODE[config.states] * size + 4 * (size // block) + 4 * VALUES[config.states])

    return states_estimate(estimate, bytes_of)
