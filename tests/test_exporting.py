"""Exports over fake plugins: planned with everything else, judged by their numbers, never half there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tunekit import open_run, resume_run
from tunekit.cli.app import run as program
from tunekit.errors import ExportError, PlanError, RecipeError, RunFolderError
from tunekit.exporting import judge
from tunekit.pipeline import Pipeline
from tunekit.recipe import from_mapping, json_schema
from tunekit.record import Record
from tunekit.values import Verification

ROWS = [{"text": "one"}, {"text": "two"}, {"text": "three"}]
GOOD = Verification("a test", 2, 10, True, 0.01, 0.5, 0.9, 4.0, 4.0, 9.0)

TARGET = '''
from pydantic import Field
from tunekit import Plugin, Problem, hookimpl
from tunekit.options import ExportConfig
from tunekit.values import *

class Options(ExportConfig):
    kl: float = Field(0.01, ge=0, description="what is measured")
    ready: bool = Field(True, description="whether it can be done")

class Words(Plugin[Options]):
    """Writes what it was asked."""
    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine):
        if not self.config.ready:
            yield Problem(plan.exports[0].key, "is not ready", "wait")

    @hookimpl
    def tunekit_export(self, bundle: ModelBundle, request: ExportRequest, context: Context) -> Exported:
        told = [request.model, request.base().model, request.dense(False).model, sorted(request.earlier)]
        (request.folder / "words.txt").write_text(repr([*told, ["".join(map(chr, row.ids)) for row in request.rows]]))
        found = Verification("a test", len(request.rows), 10, request.held_out, self.config.kl, 0.5, 0.9, 4, 4, 9)
        return Exported(found, {"note": "short"}, "Read it.")
'''


@pytest.fixture
def target(world):
    world("fake-words", {"words": "fake_words:Words"}, TARGET, group="tunekit.exports")


def pipeline(export=(), **stage):
    return Pipeline("m", ROWS, stages=[{"steps": stage}], export=export)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kl": 0.2},
            r"gguf is 0\.4 times as far from the trained model as the base is, and 0\.1 times are accepted: KL",
        ),
        ({"kl": 0.499}, "what was trained is not in it"),
        ({"kl": 0.05}, "times as far"),
        ({"kl": float("nan")}, "no finite numbers"),
        ({"kl": float("inf")}, "no finite numbers"),
        (
            {"kl": 0.0, "base_kl": 0.0},
            "the trained model says what the base says on 10 tokens of 2 rows, read by a test",
        ),
    ],
)
def test_an_export_that_is_not_what_was_trained_is_refused_with_the_numbers(changes, message):
    with pytest.raises(ExportError, match=message):
        judge("gguf", replace(GOOD, **changes), 0.1)


def test_an_export_within_the_tolerance_is_accepted():
    judge("gguf", GOOD, 0.1)
    judge("gguf", replace(GOOD, kl=0.2), 0.5)
    judge("gguf", replace(GOOD, kl=-1e-9), 0.1)  # rounding


def test_a_run_exports_what_the_recipe_names_in_order_and_notes_it(target, tmp_path):
    run = pipeline(["words", {"words": {"rows": 2}}]).run(tmp_path / "run")
    assert list(run.exports) == ["words", "words-2"]
    first, second = ((path / "words.txt").read_text() for path in run.exports.values())
    assert first == repr(["m", ["loaded m", {}], ["loaded m", {}], [], ["one", "two", "three"]])
    assert second == repr(["m", ["loaded m", {}], ["loaded m", {}], ["words"], ["one", "two"]])
    told = json.loads((run.exports["words"] / "export.json").read_text())
    assert told["verification"]["kl"] == 0.01
    assert told["note"] == "short"
    assert told["options"]["tolerance"] == 0.1
    card = (run.exports["words"] / "README.md").read_text()
    assert "Read it." in card
    assert "| KL from the trained model | 0.01 nats a token |" in card
    steps = [(step.phase, step.hook) for step in run.plan.steps]
    assert steps[-2:] == [("export", "tunekit_export")] * 2
    assert run.record.state["status"] == "finished"


def test_what_cannot_be_exported_is_said_with_everything_else(target):
    with pytest.raises(PlanError) as refused:
        pipeline([{"words": {"klx": 1}}, "wordz", {"words": {"tolerance": 2}}], steps=0).plan()
    found = {problem.where: str(problem) for problem in refused.value.problems}
    assert set(found) == {"stages.0.steps.steps", "export.0.words.klx", "export.1.wordz", "export.2.words.tolerance"}
    assert "did you mean 'words'" in found["export.1.wordz"]
    with pytest.raises(PlanError, match=r"export\.0\.words: is not ready; wait"):
        pipeline([{"words": {"ready": False}}]).plan()


def test_a_failed_export_leaves_no_folder_and_a_run_that_can_be_resumed(target, tmp_path):
    with pytest.raises(ExportError, match="as far from the trained model"):
        pipeline([{"words": {"kl": 0.3}}]).run(tmp_path / "run")
    record = Record.open(tmp_path / "run")
    assert record.state["status"] == "failed"
    assert not list((tmp_path / "run" / "exports").iterdir())
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("kl: 0.3", "kl: 0.02"))
    assert list(resume_run(tmp_path / "run").exports) == ["words"]
    assert Record.open(tmp_path / "run").state["status"] == "finished"


def test_rows_held_out_are_those_that_the_record_names(target, tmp_path):
    run = pipeline().run(tmp_path / "run")
    state = json.loads((run.folder / "run.json").read_text())
    state["stages"][0]["held_out"] = [0, 2]
    (run.folder / "run.json").write_text(json.dumps(state))
    made = open_run(run.folder).export("words")
    assert made.verification.held_out
    assert "['one', 'three']" in (made.folder / "words.txt").read_text()


def test_a_finished_run_is_exported_from_the_command_line(target, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline().run("run")
    assert program(["export", "run", "words", "rows=2", "--output", "out"]) == 0
    assert "KL from the trained model" in capsys.readouterr().out
    assert program(["export", "run", "words", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == str(Path("run/exports/words-2"))
    assert program(["export", "run", "words", "--output", "out"]) == 2
    assert "out is there already" in capsys.readouterr().err
    assert program(["export", "run", "wordz"]) == 2
    assert "did you mean 'words'" in capsys.readouterr().err
    assert program(["export", "run", "words", "kl=0.4"]) == 1
    recipe = "model: m\ndata: [{rows: [{text: one}]}]\nstages: [steps]\nexport: [words]\noutput: trained\n"
    Path("recipe.yaml").write_text(recipe)
    assert program(["train", "recipe.yaml"]) == 0
    assert "export words: trained/exports/words" in capsys.readouterr().out
    assert program(["plugins"]) == 0
    assert "Writes what it was asked." in capsys.readouterr().out


def test_a_folder_that_is_there_is_never_written_into(target, tmp_path):
    run = pipeline().run(tmp_path / "run")
    (tmp_path / "mine").mkdir()
    with pytest.raises(RunFolderError, match="is there already"):
        run.export("words", folder=str(tmp_path / "mine"))


def test_exports_are_part_of_a_recipe_and_of_its_schema(target):
    import jsonschema

    mapping = {"model": "m", "stages": ["steps"], "export": ["words", {"words": {"kl": 0.5}}]}
    recipe = from_mapping(mapping, ["export.1.words.kl=0.25"])
    assert [dict(use.options) for use in recipe.exports] == [{}, {"kl": 0.25}]
    assert from_mapping(recipe.to_mapping()) == recipe
    assert from_mapping({**mapping, "export": "words"}).exports[0].name == "words"
    with pytest.raises(RecipeError, match=r"export\.0: .* is not one export; write `- merged: {}`"):
        from_mapping({**mapping, "export": [{"words": {}, "others": {}}]})
    schema = json_schema()
    jsonschema.validate(mapping, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**mapping, "export": [{"words": {"klx": 1}}]}, schema)
