"""A class in a file of the user's own works like an installed plugin."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

from tunekit import errors
from tunekit.local import LocalPlugin, identity
from tunekit.pipeline import Pipeline, open_run, resume_run
from tunekit.recipe import json_schema

FILE = """
from pydantic import Field
from tunekit import Plugin, PluginConfig, hookimpl
from tunekit.values import ModelBundle, Report

class Options(PluginConfig):
    word: str = Field("mine", description="what is said")

class Mine(Plugin[Options]):
    @hookimpl
    def tunekit_patch(self, bundle: ModelBundle) -> Report:
        bundle.model.append(self.config.word)
        return Report(f"said {self.config.word}")
"""
STAGE = """
from fake_world import Steps

class Twice(Steps):
    pass
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_patch.py").write_text(FILE)
    (tmp_path / "my_stage.py").write_text(STAGE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe_in(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(dedent(text))
    return path


RECIPE = """
    model: m
    data: {rows: [{text: a}]}
    use:
      ./my_patch.py:Mine: {word: hello}
    stages:
      - ./my_stage.py:Twice: {steps: 2}
    output: run
"""


def test_a_patch_and_a_stage_in_files_take_part_in_a_run(world, folder):
    run = Pipeline.from_file(recipe_in(folder, RECIPE)).run()
    assert json.loads((folder / "run" / "reports.json").read_text())["mine"]["summary"] == "said hello"
    assert run.adapter == Path("run") / "stage-1-twice" / "adapter"
    planned = run.plan.plugin("mine")
    assert (planned.distribution, planned.version) == ("my_patch.py", LocalPlugin(Path("my_patch.py"), "Mine").version)


def test_files_are_found_beside_the_recipe(world, folder, monkeypatch, tmp_path_factory):
    path = recipe_in(folder, RECIPE)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert Pipeline.from_file(path).plan(estimate=False).plugin("mine")


def test_the_run_keeps_a_copy_and_is_opened_without_the_file(world, folder):
    Pipeline.from_file(recipe_in(folder, RECIPE)).run()
    (folder / "my_patch.py").unlink()
    (folder / "my_stage.py").unlink()
    assert "hello" in open_run("run").bundle.model


def test_an_interrupted_run_goes_on_with_its_copy_or_with_the_unchanged_file(world, folder):
    path = recipe_in(folder, RECIPE.replace("steps: 2", "steps: 4, stop_at: 2"))
    with pytest.raises(errors.InterruptedRunError):
        Pipeline.from_file(path).run()
    assert Pipeline.from_file(path).resume("run").record.state["status"] == "finished"


def test_a_changed_file_is_another_plugin(world, folder):
    path = recipe_in(folder, RECIPE.replace("steps: 2", "steps: 4, stop_at: 2"))
    with pytest.raises(errors.InterruptedRunError):
        Pipeline.from_file(path).run()
    before = identity("./my_patch.py:Mine")
    (folder / "my_patch.py").write_text(FILE.replace("append(", "insert(0, "))
    assert identity("./my_patch.py:Mine") != before
    with pytest.raises(errors.RunFolderError, match="another recipe"):
        Pipeline.from_file(path).resume("run")
    assert resume_run("run").record.state["status"] == "finished"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./no_file.py:Mine", "there is no file no_file.py"),
        ("./my_patch.py:Main", "my_patch.py has no Main; did you mean Mine"),
        ("./my_patch.py:Options", "no subclass of tunekit.Plugin"),
        ("./broken.py:Mine", "ZeroDivisionError.*mend the file"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_at_plan_time(world, folder, name, said):
    (folder / "broken.py").write_text("1 / 0")
    with pytest.raises(errors.PlanError, match=said):
        Pipeline.from_file(recipe_in(folder, RECIPE.replace("./my_patch.py:Mine", name))).plan(estimate=False)


def test_a_wrong_option_is_named_with_its_key(world, folder):
    with pytest.raises(errors.PlanError, match=r"my_patch\.py:Mine\.wrod: is not an option; did you mean 'word'"):
        Pipeline.from_file(recipe_in(folder, RECIPE.replace("{word:", "{wrod:"))).plan(estimate=False)


def test_editors_accept_them(world, folder):
    import jsonschema

    validator = jsonschema.Draft202012Validator(json_schema())
    validator.validate({**yaml.safe_load(RECIPE), "data": "a.json"})
    assert not validator.is_valid({**yaml.safe_load(RECIPE), "data": "a.json", "use": {"my_patch": {}}})
