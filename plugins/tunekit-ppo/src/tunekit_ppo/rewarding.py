"""What answers are worth: by functions of plugins, a reward adapter on the same base, a reward model, an endpoint."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.errors import PlanError, Problem, TunekitError
from tunekit.values import Sample, StageContext

from .options import RewardConfig

if TYPE_CHECKING:
    from tunekit_train import Job, Rules

Named = Mapping[str, list[float]]


class Rewarder(ABC):
    """Something that values answers. `name` is that of its metric."""

    name: str

    @abstractmethod
    def value(self, samples: Sequence[Sample]) -> list[float]:
        """A number for each answer; more is better."""


class Rewards:
    """All rewards of a stage, added up."""

    def __init__(self, rewarders: Sequence[Rewarder], options: RewardConfig, context: StageContext) -> None:
        self.rewarders, self.options, self.context = rewarders, options, context

    @classmethod
    def of(cls, options: RewardConfig, job: Job, rules: Rules) -> Rewards:
        """Open all that the options name. Raises PlanError where one is not there."""
        from .models import AdapterReward, ModelReward

        context, found = job.context, list[Rewarder]()
        if options.adapter is not None:
            found.append(AdapterReward(adapter_folder(options.adapter, context), job, rules))
        if options.model is not None:
            found.append(ModelReward(Path(options.model), job.bundle, rules))
        if options.url is not None:
            from .endpoint import Endpoint

            found.append(Endpoint(options.url, options.timeout, options.retries))
        return cls(found, options, context)

    def value(self, samples: Sequence[Sample]) -> Named:
        """What each source says of each answer, its weight included."""
        found = {each.name: [self.options.weight * value for value in self._checked(each.name, each.value(samples),
                 samples)] for each in self.rewarders}  # fmt: skip
        for planned, values in self.context.calls.each("tunekit_reward", samples=samples, context=self.context):
            found[planned.name] = self._checked(planned.name, values, samples)
        if not found:
            remedy = "name a plugin that values answers in `use:`, or set reward.adapter, reward.model or reward.url"
            raise PlanError([Problem(self.context.key, "nothing says what an answer is worth", remedy)])
        return found

    def total(self, found: Named, samples: Sequence[Sample]) -> list[float]:
        """The reward of each answer that is learnt from: summed, scaled, held within bounds, less for a missing end."""
        options, most = self.options, self.options.clip or math.inf
        sums = [sum(values) * options.scale for values in zip(*found.values(), strict=True)]
        return [
            min(max(value, -most), most) - (options.missing_end if sample.finish == "length" else 0.0)
            for value, sample in zip(sums, samples, strict=True)
        ]

    def facts(self) -> Mapping[str, Any]:
        """Who values."""
        return {"rewards": [each.name for each in self.rewarders]}

    def _checked(self, name: str, values: Sequence[float], samples: Sequence[Sample]) -> list[float]:
        if len(values) != len(samples):
            what = f"{name} gave {len(values)} rewards for {len(samples)} answers"
            raise TunekitError(what, "give one number for each, in their order")
        for value, sample in zip(values, samples, strict=True):
            if not math.isfinite(value):
                what = f"{name} values the answer to {sample.where} at {value}"
                raise TunekitError(what, "give a finite number for whatever the model says")
        return [float(value) for value in values]


def adapter_folder(name: str, context: StageContext) -> Path:
    """The folder of a reward adapter, by its name in this run or by its path. Raises PlanError where there is none."""
    folder = context.adapters.get(name, Path(name))
    if (folder / "adapter_config.json").is_file():
        return folder
    where, known = f"{context.key}.reward.adapter", ", ".join(context.adapters) or "none"
    what = f"{name!r} is neither an adapter that an earlier stage has left ({known}) nor a folder with one"
    raise PlanError([Problem(where, what, "name the adapter of a `reward` stage, or the folder that it left")])
