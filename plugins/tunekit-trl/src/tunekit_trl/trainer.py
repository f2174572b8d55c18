"""TRL's trainers with our optimiser, and an end to losses that are no number. Only public methods are overridden."""

from __future__ import annotations

from typing import Any

import torch
from trl import GRPOTrainer, RLOOTrainer  # type: ignore[attr-defined]

from .session import Session


class Tuned:
    """What both trainers do differently here."""

    def __init__(self, session: Session, **arguments: Any) -> None:
        self.session = session
        super().__init__(**arguments)

    def create_optimizer(self: Any, model: Any = None) -> Any:
        """The optimiser of whichever plugin owns that hook."""
        if self.optimizer is None:
            self.optimizer = self.session.make_optimizer(self.model if model is None else model, self.args.max_steps)
        return self.optimizer

    def create_scheduler(self: Any, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of the recipe."""
        if self.lr_scheduler is None:
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = self.session.make_scheduler(optimizer, num_training_steps)
        return self.lr_scheduler

    def compute_loss(self: Any, *arguments: Any, **named: Any) -> Any:
        """TRL's loss, which has to be a number."""
        loss = super().compute_loss(*arguments, **named)  # type: ignore[misc]
        if not torch.isfinite(loss):
            raise self.session.diverged("the loss", self.state.global_step + 1)
        return loss


class TunedGrpo(Tuned, GRPOTrainer):  # type: ignore[misc]
    """GRPO as TRL trains it."""


class TunedRloo(Tuned, RLOOTrainer):  # type: ignore[misc]
    """RLOO as TRL trains it."""
