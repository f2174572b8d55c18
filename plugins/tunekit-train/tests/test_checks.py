"""Options that contradict each other, or the way the data is read, are refused before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tunekit.hooks import hookimpl
from tunekit.recipe import Recipe
from tunekit.testing import FP32, fake_machine
from tunekit.values import Accelerator, Mixing, Plan
from tunekit_train import TrainConfig
from tunekit_train.checks import problems


def found(
    mixing: Mixing,
    kinds: tuple[str, ...] = ("conversation", "text"),
    plugins: tuple[Any, ...] = (),
    device: str = "cpu",
    machine: Any = None,
    **options: Any,
) -> list[str]:
    plugin = SimpleNamespace(config=TrainConfig(**options), kinds=frozenset(kinds))
    own = SimpleNamespace(index=0, key="stages.0.sft", mixing=mixing, plugin=SimpleNamespace(plugin=plugin))
    other = SimpleNamespace(key="stages.1.dpo", mixing=Mixing(streaming=True), plugin=SimpleNamespace(plugin=object()))
    stages: Any = (own, other)
    plan = Plan(Recipe("tiny"), fake_machine(), replace(FP32, device=device), plugins, (), stages)
    return [str(problem).removeprefix("stages.0.sft.") for problem in problems(plugin, plan, machine)]


STREAMED, KEPT = Mixing(streaming=True), Mixing(shuffle=False)


@pytest.mark.parametrize(
    ("mixing", "options", "problem"),
    [
        (STREAMED, {"steps": None}, "steps: is not set, and streamed data has no known length; set it"),
        (STREAMED, {"evaluate": {"share": 0.1}}, "evaluate.share: needs to know all rows, and the data is streamed"),
        (STREAMED, {"batch": {"by_length": True}}, "batch.by_length: sorts all rows, and the data is streamed"),
        (STREAMED, {"batch": {"packing": "best_fit"}}, "batch.packing: is best_fit, which sorts all rows, and"),
        (KEPT, {"batch": {"by_length": True}}, "batch.by_length: puts rows of similar length together, and data.shuf"),
        (KEPT, {"batch": {"packing": "best_fit"}}, "batch.packing: is best_fit, which sorts the rows, and data.shuffl"),
        (Mixing(), {"batch": {"packing": "greedy", "by_length": True}}, "batch.packing: is greedy, which fills every"),
        (Mixing(), {"batch": {"packing": "greedy", "padding": "always"}}, "batch.packing: is greedy, but the batches"),
    ],
)
def test_what_cannot_work_together_is_one_problem(mixing: Mixing, options: dict[str, Any], problem: str) -> None:
    (told,) = found(mixing, **{"steps": 9, **options})
    assert told.startswith(problem)


@pytest.mark.parametrize("kind", ["preference", "labelled"])
def test_answers_that_are_judged_as_a_whole_are_not_to_be_split(kind: str) -> None:
    (told,) = found(Mixing(), (kind,), batch={"too_long": "split"})
    assert told.startswith("batch.too_long: is split, and answers that are preferred or judged are judged as a whole")
    assert not found(Mixing(), (kind,), batch={"too_long": "drop"})
    assert not found(Mixing(), batch={"too_long": "split"})


class Bends:
    """Changes schedules."""

    @hookimpl
    def tunekit_train_schedule(self, factor: Any) -> Any:
        return factor


class Launches:
    """Starts processes."""

    @hookimpl
    def tunekit_launch(self) -> None:
        raise AssertionError


def test_a_schedule_of_a_plugin_and_a_rate_that_waits_for_evaluations_are_refused_together() -> None:
    def told(shape: str, stage: int | None) -> list[str]:
        bends = SimpleNamespace(name="bends", plugin=Bends(), stage=stage)
        return found(Mixing(), plugins=(bends,), schedule={"shape": shape}, evaluate={"share": 0.1})

    (problem,) = told("reduce_lr_on_plateau", None)
    assert problem == (
        "schedule.shape: is reduce_lr_on_plateau, which goes by evaluations, and bends changes what goes by steps; "
        "choose another shape, or leave bends out"
    )
    assert told("reduce_lr_on_plateau", 0) == [problem]
    assert not told("reduce_lr_on_plateau", 1)
    assert not told("cosine", None)


def test_one_process_that_sees_several_gpus_is_refused_with_what_trains_in_all_of_them() -> None:
    card = Accelerator("cuda", "nvidia", "card", 1 << 34)
    launches = SimpleNamespace(name="ddp", plugin=Launches(), stage=None)

    def told(device: str, cards: int, *plugins: Any) -> list[str]:
        return found(Mixing(), plugins=plugins, device=device, machine=fake_machine(*[card] * cards))

    (problem,) = told("cuda", 2)
    assert problem == (
        "stages.0.sft: would train in one process, which sees 2 GPUs; show it one: CUDA_VISIBLE_DEVICES=0; or name "
        "`ddp` in use, which trains in all of them what several processes can"
    )
    assert not told("cuda", 1)
    assert not told("cpu", 2)
    assert not told("cuda", 2, launches)


def test_what_works_together_is_no_problem() -> None:
    assert not found(STREAMED, steps=9, batch={"packing": "greedy"})
    assert not found(KEPT, batch={"packing": "greedy"}, evaluate={"share": 0.1})
    assert not found(Mixing(), batch={"packing": "best_fit", "padding": "never"})
    assert not found(Mixing(), batch={"by_length": True, "padding": "always"}, evaluate={"share": 0.1})
