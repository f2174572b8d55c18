"""What each reward is worth, worked out by hand, and that every option changes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunekit.errors import TunekitError
from tunekit.testing import RewardSuite, stage_context
from tunekit.testing.options import own_options
from tunekit.values import Message, Sample
from tunekit_rewards import RewardLength, RewardMatch, RewardRegex


class TestRewardMatch(RewardSuite):
    plugin = RewardMatch(column="number", how="number")


class TestRewardRegex(RewardSuite):
    plugin = RewardRegex(pattern=r"\bfive\b")


class TestRewardLength(RewardSuite):
    plugin = RewardLength(target=4)


def worth(reward: Any, answer: str, folder: Path, reference: str | None = "Five.", **columns: Any) -> float:
    sample = Sample((Message("user", "?"),), answer, "end", reference, columns, 1, "sums.json, row 1")
    context = stage_context(reward, folder=folder)
    ((_, (value,)),) = context.calls.each("tunekit_reward", samples=[sample], context=context)
    return value


@pytest.mark.parametrize(
    ("options", "answer", "expected"),
    [
        ({}, " five.\n", 1),
        ({}, "It is five.", 0),
        ({"case": True}, "five.", 0),
        ({"case": True}, "Five.", 1),
        ({"weight": -2.0}, "Five.", -2),
        ({"how": "contains"}, "It is five. Yes.", 1),
        ({"how": "contains"}, "It is six.", 0),
        ({"how": "ends"}, "It is **five**", 1),
        ({"how": "ends"}, "five it is", 0),
        ({"how": "number", "column": "result"}, "2 and 3 make 1,234.50.", 1),
        ({"how": "number", "column": "result"}, "1234.5 and 3", 0),
        ({"how": "number", "column": "result"}, "none", 0),
        ({"column": "result"}, "1234.5", 1),
    ],
)
def test_a_right_answer_is_worth_its_weight(options: Any, answer: str, expected: float, tmp_path: Path) -> None:
    assert worth(RewardMatch(**options), answer, tmp_path, result=1234.5) == expected


@pytest.mark.parametrize("options", [{}, {"column": "result"}])
def test_a_row_without_a_right_answer_ends_the_stage(options: Any, tmp_path: Path) -> None:
    with pytest.raises(TunekitError, match=r"sums\.json, row 1: .* to compare with; add one, or set"):
        worth(RewardMatch(**options), "Five.", tmp_path, reference=None)


@pytest.mark.parametrize(
    ("options", "answer", "expected"),
    [
        ({"pattern": r"<a>.*</a>"}, "so: <a>\nfive\n</a>!", 1),
        ({"pattern": r"<a>.*</a>", "whole": True}, "so: <a>five</a>", 0),
        ({"pattern": r"<a>.*</a>", "whole": True, "weight": 0.5}, "<a>five</a>", 0.5),
        ({"pattern": "x"}, "five", 0),
    ],
)
def test_an_answer_that_matches_is_worth_its_weight(options: Any, answer: str, expected: float, tmp_path: Path) -> None:
    assert worth(RewardRegex(**options), answer, tmp_path) == expected


def test_a_pattern_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="is no regular expression"):
        RewardRegex(pattern="(")


@pytest.mark.parametrize(
    ("options", "answer", "expected"),
    [
        ({"target": 4}, "one two three four", 1),
        ({"target": 4}, "one two  three", 0.75),
        ({"target": 4, "slack": 1}, "one two three", 1),
        ({"target": 4, "slack": 1}, "one two", 0.75),
        ({"target": 4}, "", 0),
        ({"target": 4}, "one " * 20, 0),
        ({"target": 4, "unit": "characters", "weight": 2.0}, " five ", 2),
    ],
)
def test_an_answer_is_worth_more_the_nearer_its_length(
    options: Any, answer: str, expected: float, tmp_path: Path
) -> None:
    assert worth(RewardLength(**options), answer, tmp_path) == pytest.approx(expected)


def test_every_option_is_among_those_shown() -> None:
    shown = {"weight", "how", "column", "case", "pattern", "whole", "target", "slack", "unit"}
    assert {path for kind in (RewardMatch, RewardRegex, RewardLength) for path in own_options(kind)} == shown
