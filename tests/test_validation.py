"""What is wrong with an option is one problem in the user's words, with the nearest name there is."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from tunekit.errors import Problem
from tunekit.plugin import PluginConfig
from tunekit.recipe.validation import validate

Name = Literal["sigmoid", "hinge"]


class Options(PluginConfig):
    """A name; a name, or several with their weights."""

    shape: Name = "sigmoid"
    loss: Name | dict[Name, float] = "sigmoid"


def told(**options: Any) -> list[str]:
    problems: list[Problem] = []
    assert validate(Options, options, "stages.0.dpo", problems) is None
    return [str(problem) for problem in problems]


@pytest.mark.parametrize("option", ["shape", "loss"])
def test_a_name_that_is_misspelt_is_one_problem_that_suggests_the_nearest(option: str) -> None:
    (problem,) = told(**{option: "sigmiod"})
    assert problem == (
        f"stages.0.dpo.{option}: is 'sigmiod': input should be 'sigmoid' or 'hinge'; did you mean 'sigmoid'?"
    )


def test_a_name_near_none_is_told_without_a_suggestion() -> None:
    (problem,) = told(loss="ppo")
    assert problem.endswith("input should be 'sigmoid' or 'hinge'")


def test_a_misspelt_key_of_a_mapping_and_a_value_of_no_branch_are_told() -> None:
    assert any("did you mean 'hinge'?" in problem for problem in told(loss={"hings": 1.0}))
    assert told(loss=3)
