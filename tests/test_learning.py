"""The page on learning is what the kept results say; its recipes plan; its curves can be drawn."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tunekit.plan import make_plan
from tunekit.recipe import from_file
from tunekit.testing import save_tiny_model

DOCS = Path(__file__).resolve().parent.parent / "docs"
RECIPES = sorted((DOCS / "learning").glob("*.yaml"))
ROWS = {
    "alpaca_en_demo.json": {"instruction": "a", "output": "b"},
    "dpo_en_demo.json": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "kto_en_demo.json": {"prompt": "a", "completion": "b", "label": True},
    "wiki_demo.txt": "words",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def learning(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DOCS / "learning"))
    for name in ("run", "curves", "stages"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("run")


@pytest.fixture
def results() -> dict:
    return json.loads((DOCS / "learning" / "results.json").read_text())


def test_the_page_on_learning_is_what_the_kept_results_say(learning, results):
    assert (DOCS / "learning.md").read_text() == learning.page(results)


def before_and_after(results: dict, stage: str, figure: str) -> tuple[float, float]:
    """What was measured on held-out rows before the first step and after the last."""
    lines = [line for line in results["stages"][stage]["lines"] if line["kind"] == "evaluated"]
    return lines[0][figure], lines[-1][figure]


@pytest.mark.parametrize(
    ("stage", "figure", "sign"),
    [("sft", "loss", -1), ("pretrain", "perplexity", -1), ("reward", "accuracy", 1), ("reward", "margin", 1),
     ("dpo", "accuracy", 1), ("dpo", "margin", 1), ("kto", "margin", 1), ("ppo", "reward", 1)],
)  # fmt: skip
def test_what_was_kept_shows_that_it_learns(results, stage, figure, sign):
    before, after = before_and_after(results, stage, figure)
    assert sign * (after - before) > 0


def test_the_reward_model_beats_chance_and_ppo_stays_within_its_target(learning, results):
    _, accuracy = before_and_after(results, "reward", "accuracy")
    assert learning.interval(accuracy, results["stages"]["reward"]["held_out"])[0] > 0.5
    (stage,) = from_file(DOCS / "learning" / "ppo.yaml").stages
    assert before_and_after(results, "ppo", "kl")[1] < stage.options["kl"]["target"]


def test_every_stage_of_the_page_has_its_picture(results):
    for name in results["stages"]:
        assert (DOCS / "pictures" / f"learning-{name}.png").read_bytes().startswith(b"\x89PNG"), name


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_of_the_page_plans(path, learning, tiny, tmp_path, monkeypatch):
    name = learning.LESSONS[path.stem].data
    row = ROWS[name]
    (tmp_path / name).write_text(row if isinstance(row, str) else json.dumps([row]))
    monkeypatch.chdir(tmp_path)
    plan = make_plan(from_file(path, (f"model={tiny}",)))
    assert [stage.name for stage in plan.stages] == [path.stem]


def test_a_stage_is_kept_from_its_run_with_the_figures_before_the_first_step(learning, tiny, tmp_path):
    rows = [{"instruction": f"Say {number}.", "output": f"It is {number}."} for number in range(12)]
    (tmp_path / "alpaca_en_demo.json").write_text(json.dumps(rows))
    options = ("steps=2", "evaluate.every=1", "schedule.warmup_steps=1")
    small = (f"model={tiny}", "use.precision.compute=fp32", *(f"stages.sft.{option}" for option in options))
    kept = learning.learn("sft", tmp_path, tmp_path / "runs", small)
    evaluated = [line["loss"] for line in kept["lines"] if line["kind"] == "evaluated"]
    assert [line["step"] for line in kept["lines"]] == [0, 1, 2, 1, 2]
    assert evaluated[0] == evaluated[1] != evaluated[2], "the first step of a warm-up has a learning rate of 0"
    learning.draw(learning.LESSONS["sft"], kept, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_intervals_are_those_of_wilson(learning):
    low, high = learning.interval(0.5, 100)  # (0.5 + z^2/200 -+ z sqrt(1/400 + z^2/40000)) / (1 + z^2/100), z = 1.96
    assert (low, high) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert learning.interval(1.0, 10)[1] == pytest.approx(1.0)
