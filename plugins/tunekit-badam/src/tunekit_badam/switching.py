"""Gradients of one block alone, while a step is computed."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from .optimizer import BlockAdamW


class OneBlock(TrainerCallback):
    """Freeze all blocks but the current one from the beginning of a step to its end.

    Between steps everything trains as the plan says: what is evaluated, compared, saved or kept from step to step
    never sees a frozen block.
    """

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """The backward stops below the current block, and no other gets a gradient."""
        own = block_optimizer(optimizer)
        active = {id(parameter) for parameter in own.active}
        for parameter in (each for block in own.blocks for each in block):
            parameter.requires_grad_(id(parameter) in active)

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """The step is taken."""
        for block in block_optimizer(optimizer).blocks:
            for parameter in block:
                parameter.requires_grad_(True)


def block_optimizer(optimizer: Any) -> BlockAdamW:
    """The optimiser inside what accelerate has wrapped around it."""
    while not isinstance(optimizer, BlockAdamW):
        optimizer = optimizer.optimizer
    return optimizer
