"""The loop of an optimiser that moves each parameter by itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class EachParameter(torch.optim.Optimizer):
    """Moves every parameter that has a gradient; a subclass says how, in `move_`."""

    @abstractmethod
    def move_(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Move a parameter in place, with the options of its `group`; `state` is kept between steps."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; `closure` computes the loss again where given."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.move_(parameter, parameter.grad, self.state[parameter], group)
        return loss
