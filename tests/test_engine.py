"""Runs and their record, over fake plugins: phases in order, failures told, nothing half written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from tests_helpers import HELPER

from tunekit import errors, open_run, resume_run
from tunekit.pipeline import Pipeline
from tunekit.record import Record, append_line, plain, read_json, read_lines, write_json, write_text

ROWS = [{"text": "one"}, {"text": "two"}]


def pipeline(use=(), stages=("steps",), data=ROWS):
    return Pipeline("m", data, use, stages)


def read(folder: Path, name: str):
    return json.loads((folder / name).read_text())


def test_a_run_goes_through_its_phases_in_order(world, tmp_path):
    world("fake-opt", {"patch": "fake_opt:Patch"}, HELPER)
    run = pipeline(use=["patch"]).run(tmp_path / "run")
    assert run.bundle.model == ["loaded m", {}, "patched", "trained with run"]
    hooks = [call["hook"] for call in read_lines(tmp_path / "run" / "calls.jsonl")]
    assert hooks == [
        "tunekit_read_data",
        "tunekit_format_data",
        "tunekit_format_data",
        "tunekit_format_data",
        "tunekit_format_data",
        "tunekit_load_model",
        "tunekit_patch",
        "tunekit_train_stage",
        "tunekit_optimizer",
    ] or hooks.index("tunekit_load_model") < hooks.index("tunekit_patch") < hooks.index("tunekit_train_stage")


def test_the_record_holds_what_is_needed_to_repeat_and_explain(world, tmp_path):
    world("fake-opt", {"patch": "fake_opt:Patch"}, HELPER)
    run = pipeline(use=["patch", "sizes"]).run(tmp_path / "run")
    folder = run.folder
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["stages"] == [{"steps": {}}]
    assert Path(recipe["data"][0]["path"]).read_text().count("\n") == 2
    origins = read(folder, "origins.json")
    assert origins["model"] == {"value": "m", "origin": "code"}
    assert origins["stages.0.steps.steps"] == {"value": 3, "origin": "default"}
    assert read(folder, "versions.json")["fake-world"] == "1.0"
    assert read(folder, "machine.json")["cores"] >= 1
    (account,) = read(folder, "data.json")["steps"].values()
    assert (account["rows"], account["kept"], account["format"]) == (2, 2, "text")
    assert read(folder, "reports.json")["patch"]["summary"] == "patched"
    assert read(folder, "plan.json")["estimate"]["trainable"] == 1
    state = read(folder, "run.json")
    assert state["status"] == "finished"
    assert state["memory"] == {"estimated": 110, "measured": 100, "ratio": 1.1}
    assert [line["loss"] for line in run.metrics] == [1.0, 0.5, 1 / 3]
    assert run.adapter == folder / "stage-1-steps" / "adapter"
    assert run.results["steps"]["loss"] == 1 / 3


def test_stages_of_one_name_keep_accounts_of_their_own(world, tmp_path):
    second = {"steps": {"data": [{"text": "c"}]}}
    run = Pipeline("m", [{"text": "a"}, {"text": "b"}], stages=["steps", second]).run(tmp_path / "run")
    kept = {
        name: sum(account["kept"] for account in stage.values())
        for name, stage in read(run.folder, "data.json").items()
    }
    assert kept == {"steps-1": 2, "steps-2": 1}


def test_a_bad_row_stops_the_run_before_the_model_is_loaded(world, tmp_path):
    with pytest.raises(errors.DataError, match="row 2"):
        pipeline(data=[{"text": "a"}, {"text": ""}]).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_failing_plugin_leaves_a_record_that_says_so(world, tmp_path):
    with pytest.raises(
        errors.HookCallError, match=r"plugin transformers \(fake-world 1.0\) failed in tunekit_load_model"
    ):
        pipeline(use={"transformers": {"fail": True}}).run(tmp_path / "run")
    state = read(tmp_path / "run", "run.json")
    assert state["status"] == "failed"
    assert "the disk is on fire" in state["message"]


def test_an_interrupted_run_says_how_to_resume_and_goes_on_to_the_same_end(world, tmp_path):
    whole = pipeline(stages=[{"steps": {"steps": 5}}]).run(tmp_path / "whole")
    stages = [{"steps": {"steps": 5, "stop_at": 2}}]
    with pytest.raises(errors.InterruptedRunError, match=f"tunekit resume {tmp_path / 'run'}"):
        pipeline(stages=stages).run(tmp_path / "run")
    assert read(tmp_path / "run", "run.json")["status"] == "interrupted"
    resumed = resume_run(tmp_path / "run")
    assert resumed.metrics == whole.metrics
    assert resumed.record.state["status"] == "finished"


def test_metrics_after_the_point_of_return_are_taken_back(world, tmp_path):
    stages = [{"steps": {"steps": 4, "stop_at": 3}}]
    with pytest.raises(errors.InterruptedRunError):
        pipeline(stages=stages).run(tmp_path / "run")
    (tmp_path / "run" / "stage-1-steps" / "done").write_text("1")
    resumed = resume_run(tmp_path / "run")
    assert [line["step"] for line in resumed.metrics] == [1, 2, 3, 4]


def test_a_finished_stage_is_not_run_again(world, tmp_path):
    stages = [{"steps": {"steps": 2}}, {"steps": {"steps": 3, "stop_at": 1}}]
    with pytest.raises(errors.InterruptedRunError):
        pipeline(stages=stages).run(tmp_path / "run")
    resumed = resume_run(tmp_path / "run")
    assert [stage["index"] for stage in resumed.record.finished_stages()] == [0, 1]
    assert resumed.bundle.saved_adapter == tmp_path / "run" / "stage-2-steps" / "adapter"


def test_a_run_of_another_recipe_is_not_resumed(world, tmp_path):
    pipeline().run(tmp_path / "run")
    with pytest.raises(errors.RunFolderError, match="holds a run of another recipe"):
        Pipeline("other", ROWS, (), ["steps"]).resume(tmp_path / "run")


def test_a_folder_with_another_run_is_refused(world, tmp_path):
    pipeline().run(tmp_path / "run")
    with pytest.raises(errors.RunFolderError, match=r"holds another run \(finished\); choose another output folder"):
        pipeline().run(tmp_path / "run")


def test_a_folder_with_other_things_is_refused(world, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(errors.RunFolderError, match="is not empty and holds no run"):
        pipeline().run(tmp_path)


def test_an_unfinished_run_in_the_way_offers_to_resume(world, tmp_path):
    with pytest.raises(errors.InterruptedRunError):
        pipeline(stages=[{"steps": {"stop_at": 1}}]).run(tmp_path / "run")
    with pytest.raises(errors.RunFolderError, match=r"continue it with `tunekit resume"):
        pipeline().run(tmp_path / "run")


def test_an_output_that_cannot_be_written_says_so(world, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        errors.RunFolderError, match=r"cannot write .*; free some space, or choose another output folder"
    ):
        pipeline().run(tmp_path / "file" / "run")
    with pytest.raises(errors.RunFolderError, match="is a file; name a folder"):
        pipeline().run(tmp_path / "file")


def test_a_full_disk_is_told_as_such(monkeypatch, tmp_path):
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(errors.RunFolderError, match="No space left on device; free some space"):
        write_text(tmp_path / "a.txt", "x")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_never_sees_half_a_file(tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "old")

    def dies(source: str, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_torn_last_line_is_left_out(tmp_path):
    append_line(tmp_path / "m.jsonl", {"a": 1})
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write('{"a": 2')
    assert list(read_lines(tmp_path / "m.jsonl")) == [{"a": 1}]


def test_a_number_that_is_none_is_written_by_its_name(tmp_path):
    append_line(tmp_path / "m.jsonl", {"loss": float("nan")})
    assert list(read_lines(tmp_path / "m.jsonl")) == [{"loss": "nan"}]


def test_two_stages_of_one_name_keep_their_own_metrics_results_and_data(world, tmp_path):
    run = pipeline(stages=({"steps": {"steps": 2}}, {"steps": {"steps": 3}})).run(tmp_path / "run")
    lines = [(line["index"], line["step"], line["loss"]) for line in run.metrics]
    assert lines == [(0, 1, 1), (0, 2, 1 / 2), (1, 1, 1), (1, 2, 1 / 2), (1, 3, 1 / 3)]
    assert {name: result["loss"] for name, result in run.results.items()} == {"steps-1": 1 / 2, "steps-2": 1 / 3}
    assert list(run.data.accounts) == list(run.data.configs) == ["steps-1", "steps-2"]


@pytest.mark.parametrize("text", ["a\u2028b\u2029c\x85d", "\ud83d", "a\nb\r\x1c\x0bc", "😀"])
def test_any_text_is_one_line_and_comes_back(tmp_path, text):
    append_line(tmp_path / "m.jsonl", {"message": text})
    append_line(tmp_path / "m.jsonl", {"a": 1})
    assert list(read_lines(tmp_path / "m.jsonl")) == [{"message": text}, {"a": 1}]
    write_json(tmp_path / "m.json", {"message": text})
    assert read_json(tmp_path / "m.json") == {"message": text}


def test_numbers_of_numpy_stay_numbers():
    numbers = {"loss": np.float32(0.5), "good": np.bool_(True), "row": np.int64(3), "all": np.arange(3), "not": np.nan}
    assert plain(numbers) == {"loss": 0.5, "good": True, "row": 3, "all": [0, 1, 2], "not": "nan"}
    assert plain(np.float32("inf")) == "inf"


def test_a_failing_watcher_becomes_a_warning(world, tmp_path):
    world("fake-opt", {"deaf": "fake_opt:Deaf"}, HELPER)

    def clumsy(event):
        raise RuntimeError("fell over")

    run = pipeline(use=["deaf"]).run(tmp_path / "run", watchers=[clumsy])
    warnings = {line["message"] for line in read_lines(run.folder / "warnings.jsonl")}
    assert warnings == {
        "a watcher failed: RuntimeError: fell over",
        "plugin deaf (fake-opt 1.0) failed in tunekit_event: ValueError: not listening",
    }
    assert run.record.state["status"] == "finished"


def test_a_run_answers_and_can_be_opened_again(world, tmp_path):
    run = pipeline().run(tmp_path / "run")
    assert run.chat("abc") == "cba"
    assert "".join(run.stream("abc")) == "cba"
    assert run.perplexity(["x"]) == pytest.approx(2.718281828**0.5)
    again = open_run(tmp_path / "run")
    assert again.chat("abc") == "cba"
    assert again.bundle.saved_adapter == run.adapter


def test_a_folder_without_a_run_cannot_be_opened(tmp_path):
    with pytest.raises(errors.RunFolderError, match="holds no run; name the output folder of one"):
        Record.open(tmp_path)


def test_no_output_is_a_problem_of_the_recipe(world):
    with pytest.raises(errors.RecipeError, match="output: is missing; say where the run goes"):
        pipeline().run()


def test_rows_without_an_end_are_kept_as_far_as_they_are_read(world, tmp_path):
    def rows():
        number = 0
        while True:
            number += 1
            yield {"text": str(number)}

    run = Pipeline("m", {"rows": rows, "limit": 3}, stages=["steps"]).run(tmp_path / "run")
    assert (tmp_path / "run" / "data" / "data.jsonl").read_text().count("\n") == 3
    assert read(run.folder, "origins.json")["data.0.rows"]["value"] == []
