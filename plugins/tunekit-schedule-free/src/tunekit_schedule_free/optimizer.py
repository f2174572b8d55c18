"""Schedule-free AdamW that goes back to the very weights it was training."""

from __future__ import annotations

from typing import Any

import torch
from schedulefree import AdamWScheduleFree  # type: ignore[import-untyped]

from tunekit.values import OptimizerSettings
from tunekit_train.adamw import decay_groups

from . import ScheduleFreeConfig


class ExactScheduleFree(AdamWScheduleFree):  # type: ignore[misc]
    """The authors' AdamWScheduleFree, but `train` after `eval` is exact.

    There x, the average, is worked out from y, where gradients are taken, and z, where steps are taken:
    y = (1 - beta1) z + beta1 x, and then y from x again, which rounds. Here y is kept aside meanwhile, as `y` in the
    state: a run that is evaluated or saved takes the steps of one that is not, and one that is resumed takes the same.
    """

    @torch.no_grad()
    def eval(self) -> None:
        """Put the averaged weights in place."""
        for group in self.param_groups:
            if group["train_mode"]:
                for parameter in group["params"]:
                    self._average_(parameter, group["betas"][0])
                group["train_mode"] = False

    @torch.no_grad()
    def train(self) -> None:
        """Put the weights in place at which gradients are taken."""
        for group in self.param_groups:
            if not group["train_mode"]:
                for parameter in group["params"]:
                    if "y" in self.state[parameter]:
                        parameter.copy_(self.state[parameter].pop("y"))
                group["train_mode"] = True

    def _average_(self, parameter: Any, beta1: float) -> None:
        state = self.state[parameter]
        if "z" in state:
            state["y"] = parameter.detach().clone()
            parameter.lerp_(state["z"], 1 - 1 / beta1)


def make_optimizer(
    config: ScheduleFreeConfig, named: list[tuple[str, Any]], settings: OptimizerSettings
) -> ExactScheduleFree:
    """The optimiser, ready to train. The warm-up is the stage's."""
    optimizer = ExactScheduleFree(
        decay_groups(named, settings.weight_decay),
        lr=settings.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        r=config.power,
        weight_lr_power=config.rate_power,
    )
    optimizer.train()
    return optimizer
