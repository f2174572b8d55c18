"""Torch's Muon and AdamW as one optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tunekit.errors import PlanError, Problem
from tunekit.values import BYTES, Estimate, OptimizerSettings
from tunekit_train.adamw import make_adamw
from tunekit_train.estimate import states_estimate
from tunekit_train.linear_weights import hidden_matrices

from . import MuonConfig


class MuonWithAdamW(torch.optim.Optimizer):
    """One optimiser to schedulers and checkpoints; a step is one of `muon`, then one of `adamw`.

    Both work on the groups and the states of this one. A parameter group with `momentum` is Muon's.
    """

    def __init__(self, muon: torch.optim.Optimizer | None, adamw: torch.optim.Optimizer | None) -> None:
        self.parts = [part for part in (muon, adamw) if part is not None]
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; `closure` computes the loss again where given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            own = isinstance(part, torch.optim.Muon)
            part.param_groups = [group for group in self.param_groups if ("momentum" in group) == own]
            part.state = self.state
            part.step()
        return loss


def make_optimizer(
    config: MuonConfig, model: Any, named: list[tuple[str, Any]], settings: OptimizerSettings
) -> MuonWithAdamW:
    """Hidden matrices and all else, each to its own. PlanError for `original` on layers stored the other way round."""
    hidden = {id(weight): weight for weight in hidden_matrices(model).values()}
    _refuse_turned(config, model)
    matrices = [parameter for _, parameter in named if id(parameter) in hidden]
    others = [(name, parameter) for name, parameter in named if id(parameter) not in hidden]
    muon = adamw = None
    if matrices:
        muon = torch.optim.Muon(
            matrices,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            momentum=config.momentum,
            nesterov=config.nesterov,
            ns_steps=config.iterations,
            adjust_lr_fn=config.adjust,
        )
    if others:
        rate, betas = settings.learning_rate * config.others_share, (config.beta1, config.beta2)
        adamw = make_adamw(others, rate, settings.weight_decay, betas, config.eps)
    return MuonWithAdamW(muon, adamw)


def estimate_states(config: MuonConfig, dtype: str, estimate: Estimate) -> Estimate:
    """Add what both keep of all that trains in the skeleton, at `dtype`. PlanError as above."""
    _refuse_turned(config, estimate.skeleton)
    hidden = {id(weight) for weight in hidden_matrices(estimate.skeleton).values()}
    return states_estimate(estimate, lambda each: BYTES[dtype] * (1 if id(each) in hidden else 2) * int(each.numel()))


def _refuse_turned(config: MuonConfig, model: Any) -> None:
    from transformers.pytorch_utils import Conv1D

    turned = next((name for name, layer in model.named_modules() if isinstance(layer, Conv1D)), None)
    if config.adjust == "original" and turned is not None:
        what = f"is original, which goes by out / in, and {turned} is stored as [in out]"
        raise PlanError([Problem("use.muon.adjust", what, "use match_rms_adamw")])
