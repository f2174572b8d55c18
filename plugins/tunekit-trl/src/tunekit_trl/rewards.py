"""The rewards of all planned plugins, as TRL calls for them: one function for each, over the answers of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunekit.errors import TunekitError
from tunekit.values import Sample, StageContext
from tunekit_train.prompts import Prompts

Ids = Sequence[int]
Reward = Callable[..., list[float]]


class Rewards:
    """Asks every plugin that values answers, once for each batch of them."""

    def __init__(self, prompts: Prompts, tokenizer: Any, limit: int, context: StageContext) -> None:
        self.prompts, self.tokenizer, self.limit, self.context = prompts, tokenizer, limit, context
        self.ends: frozenset[int] = frozenset()
        """The tokens that end an answer, once the trainer knows them."""
        self.names = list(self._ask(()))
        self._values: Mapping[str, list[float]] = {}

    @property
    def functions(self) -> list[Reward]:
        """TRL's reward functions, called one after the other with the same answers."""
        return [self._function(name, first=name == self.names[0]) for name in self.names]

    def _function(self, name: str, first: bool) -> Reward:
        def value(at: Sequence[int], completion_ids: Sequence[Ids], **_: Any) -> list[float]:
            if first:
                self._values = self._ask([self._sample(*each) for each in zip(at, completion_ids, strict=True)])
            return self._values[name]

        value.__name__ = name
        return value

    def _sample(self, at: int, ids: Ids) -> Sample:
        ended = len(ids) < self.limit or ids[-1] in self.ends
        answer: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return self.prompts.asked(at).sample(answer, "end" if ended else "length")

    def _ask(self, samples: Sequence[Sample]) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for planned, values in self.context.calls.each("tunekit_reward", samples=samples, context=self.context):
            if len(values) != len(samples):
                what = f"{planned.name} values {len(samples)} answers by {len(values)} rewards"
                raise TunekitError(what, "return one for each answer")
            for sample, value in zip(samples, values, strict=True):
                if not math.isfinite(value):
                    what = f"{planned.name} values an answer to {sample.where} by {value}"
                    raise TunekitError(what, "a reward is a finite number")
            found[planned.name] = [float(value) for value in values]
        return found
