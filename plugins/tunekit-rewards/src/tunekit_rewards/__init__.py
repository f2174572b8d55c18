"""Ready rewards, for stages that learn from their own answers: a right answer, a pattern, a length."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, FiniteFloat

from tunekit.errors import TunekitError
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Sample, StageContext

Way = Literal["equals", "contains", "ends", "number"]
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from None
    return text


class RewardOptions(PluginConfig):
    """What every reward here knows."""

    weight: FiniteFloat = Field(default=1.0, description="what the reward is multiplied by; below 0 it is a penalty")


Config = TypeVar("Config", bound=RewardOptions)


class Reward(Plugin[Config]):
    """A reward between 0 and 1 for each answer, times its weight."""

    provides = frozenset({"reward"})

    @abstractmethod
    def value(self, sample: Sample) -> float:
        """What an answer is worth, 0 to 1."""

    @hookimpl
    def tunekit_reward(self, samples: Sequence[Sample], context: StageContext) -> list[float]:
        """Value each answer by itself."""
        return [self.config.weight * self.value(sample) for sample in samples]


class MatchOptions(RewardOptions):
    """Options of a reward for right answers."""

    how: Way = Field(
        default="equals",
        description="equals: the answer is the right one; contains: it is in it; ends: the answer ends with it, but "
        "for punctuation; number: the last number of both is the same",
    )
    column: str | None = Field(
        default=None, description="the column of the data that holds the right answer; unset: the answer of the data"
    )
    case: bool = Field(default=False, description="whether capitals matter")


class RewardMatch(Reward[MatchOptions]):
    """1 for a right answer, else 0. White space around it, and how much there is of it inside, do not matter."""

    def value(self, sample: Sample) -> float:
        """Compare the answer with the right one."""
        said, right = self._plain(sample.answer), self._plain(self._right(sample))
        return float(COMPARED[self.config.how](said, right))

    def _right(self, sample: Sample) -> str:
        column = self.config.column
        found = sample.reference if column is None else sample.columns.get(column)
        if found is None or not str(found).strip():
            what = "the data gives no answer" if column is None else f"column {column} holds nothing"
            raise TunekitError(f"{sample.where}: {what} to compare with", "add one, or set reward_match.column")
        return str(found)

    def _plain(self, text: str) -> str:
        text = " ".join(text.split())
        return text if self.config.case else text.casefold()


class RegexOptions(RewardOptions):
    """Options of a reward for a pattern."""

    pattern: Annotated[str, AfterValidator(_pattern)] = Field(
        description="a regular expression of Python; a dot matches line ends too"
    )
    whole: bool = Field(default=False, description="whether the whole answer has to match, or some part of it")


class RewardRegex(Reward[RegexOptions]):
    """1 for an answer that matches a regular expression, else 0."""

    def value(self, sample: Sample) -> float:
        """Look for the pattern."""
        pattern = re.compile(self.config.pattern, re.DOTALL)
        return float(bool((pattern.fullmatch if self.config.whole else pattern.search)(sample.answer)))


class LengthOptions(RewardOptions):
    """Options of a reward for a length."""

    target: int = Field(ge=1, description="the length that is worth 1, in units")
    slack: int = Field(default=0, ge=0, description="so many units more or fewer are worth 1 too")
    unit: Literal["words", "characters"] = Field(default="words", description="what is counted")


class RewardLength(Reward[LengthOptions]):
    """1 for an answer of the target length; it falls evenly to 0 for one that is empty or twice as long."""

    def value(self, sample: Sample) -> float:
        """Measure the answer: 1 - |length - target| / target, where that is beyond the slack, and at least 0."""
        options = self.config
        length = len(sample.answer.split()) if options.unit == "words" else len(sample.answer.strip())
        off = max(0, abs(length - options.target) - options.slack)
        return max(0.0, 1 - off / options.target)


def _last_number(text: str) -> float | None:
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _same_number(said: str, right: str) -> bool:
    number = _last_number(right)
    return number is not None and _last_number(said) == number


COMPARED: Mapping[str, Callable[[str, str], bool]] = {
    "equals": lambda said, right: said == right,
    "contains": lambda said, right: right in said,
    "ends": lambda said, right: said.rstrip(" .!?\"'*)]}").endswith(right.rstrip(" .!?\"'*)]}")),
    "number": _same_number,
}

__all__ = ["LengthOptions", "MatchOptions", "RegexOptions", "RewardLength", "RewardMatch", "RewardRegex"]
