"""AdamW over one block of parameters at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tunekit.values import OptimizerSettings
from tunekit_train.adamw import decay_groups, has_fused

from . import BadamConfig, Order
from .blocks import blocks_of, turn


class BlockAdamW(torch.optim.AdamW):
    """AdamW that trains a block of parameters for `switch_every` steps, forgets its moments, and takes the next.

    Gradients of other blocks are dropped. How many steps were taken is kept in the parameter groups, and says whose
    turn it is; the state holds the moments of the current block alone.
    """

    def __init__(
        self, groups: list[dict[str, Any]], blocks: list[list[Any]], order: Order, seed: int, **options: Any
    ) -> None:
        super().__init__(groups, **options)
        self.blocks, self.order, self.seed = blocks, order, seed

    @property
    def active(self) -> list[Any]:
        """The parameters of the block that the next step moves."""
        group = self.param_groups[0]
        return self.blocks[turn(group["taken"], len(self.blocks), group["switch_every"], self.order, self.seed)]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the current block; `closure` computes the loss again where given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        active = {id(parameter) for parameter in self.active}
        for group in self.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in active:
                    parameter.grad = None
        super().step()
        for group in self.param_groups:
            group["taken"] += 1
        if self.param_groups[0]["taken"] % self.param_groups[0]["switch_every"] == 0:
            self.state.clear()  # with fresh moments, even where the same block is next
        return loss


def make_optimizer(
    config: BadamConfig, model: Any, named: list[tuple[str, Any]], settings: OptimizerSettings, seed: int
) -> BlockAdamW:
    """The optimiser over the blocks of what trains."""
    groups = decay_groups(named, settings.weight_decay)
    return BlockAdamW(
        [{**group, "taken": 0, "switch_every": config.switch_every} for group in groups],
        blocks_of(model, [parameter for _, parameter in named], config.layers),
        config.order,
        seed,
        lr=settings.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=has_fused(groups),
    )
