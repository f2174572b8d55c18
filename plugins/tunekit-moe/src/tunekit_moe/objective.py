"""A load-balancing loss beside any objective: the model's own, of the very run that the objective learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from tunekit_train import Batch, Forward, Job, Need, Objective, Provided, Source, Sum, Sums

from .checks import refuse_without_router


class Balance(NamedTuple):
    """The load-balancing loss of a batch, a scalar with gradient, and what it weighs in the loss of a step."""

    loss: Tensor
    weight: float


class Weighed(Source):
    """The weight of the loss in this stage."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def facts(self) -> Mapping[str, Any]:
        """For the record."""
        return {"router_loss_weight": self.weight}


@dataclass(frozen=True)
class RouterLoss(Need[Balance]):
    """The load-balancing loss that the model's own code makes of its routers, padding left out.

    Of N experts, N times the sum over them of the share of choices that fell on an expert times its mean probability,
    both over all tokens and layers of the batch: equations 4 to 6 of *Switch Transformers*, arXiv 2101.03961.
    `weight` is what it counts, None for what the model's config says.
    """

    weight: float | None = None

    def asks(self) -> Mapping[str, Any]:
        """The model makes the loss where it is asked for what its routers say."""
        return {"output_router_logits": True}

    def prepare(self, job: Job, checkpoint: Path | None) -> Weighed:
        """Find the weight; TunekitError for a model without a router."""
        return Weighed(refuse_without_router(job.bundle.model, self.weight))

    def provide(self, forward: Forward) -> Balance:
        """Of the one run that all needs share."""
        source = forward.source(self)
        assert isinstance(source, Weighed)
        return Balance(forward.output("aux_loss"), source.weight)


class Balanced(Objective):
    """An objective and the load-balancing loss: its mean over a step is `objective + weight * balance`.

    The balance of a micro-batch is that of its own tokens, so that several are not one large batch: it couples them.
    The loss of the objective alone is told as `task_loss`, the balance as `router_loss`.
    """

    couples_batch: ClassVar[bool] = True

    def __init__(self, objective: Objective, weight: float | None) -> None:
        self.objective, self.balance = objective, RouterLoss(weight)

    @property
    def needs(self) -> tuple[Need[Any], ...]:
        """Those of the objective, and the balance."""
        return (*self.objective.needs, self.balance)

    def weight(self, batch: Batch) -> float:
        """That of the objective."""
        return self.objective.weight(batch)

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        """The objective's, and the balance as often as the batch weighs."""
        own, balance, weight = self.objective.sums(batch, provided), provided[self.balance], self.weight(batch)
        told = {
            "task_loss": Sum(float(own.loss.detach()), weight),
            "router_loss": Sum(float(balance.loss.detach()) * weight, weight),
        }
        return Sums(own.loss + balance.weight * weight * balance.loss, {**own.metrics, **told})

    def scored_only(self, batch: Batch) -> Sequence[bool]:
        """None: every token has a part in the balance, and a gradient through it."""
        return ()

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """What follows from the objective's own loss, and the loss with the balance."""
        alone = {**means, "loss": means["task_loss"]} if "task_loss" in means else dict(means)
        return {**self.objective.summary(alone), **({"loss": means["loss"]} if "loss" in means else {})}

    def observe(self, metrics: Mapping[str, Sum]) -> None:
        """The objective's state."""
        self.objective.observe(metrics)

    def state(self) -> dict[str, Any]:
        """The objective's state."""
        return self.objective.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The objective's state."""
        self.objective.load_state(state)
