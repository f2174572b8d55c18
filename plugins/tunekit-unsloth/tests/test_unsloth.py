"""Unsloth: refused where it is missing, imported in a child alone, and a run with it is an ordinary run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import tunekit as tk
from tunekit.errors import PlanError
from tunekit.testing import PluginSuite, default_plugin, plan_for, save_tiny_model
from tunekit.values import LoadRequest
from tunekit_lora import Lora
from tunekit_sft import Sft
from tunekit_train.testing import FP32
from tunekit_unsloth import Unsloth, checks

ROWS = [{"instruction": f"Say {number}.", "output": f"It is {number}."} for number in range(8)]
HERE = all(checks.is_installed(name) for name in checks.NEEDED)


class TestUnsloth(PluginSuite):
    plugin = Unsloth()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("unsloth") / "model"))


def pipeline(model: str, *use: Any) -> tk.Pipeline:
    shared = (Lora(rank=4), default_plugin("tunekit_precision", compute="fp32"))
    return tk.Pipeline(model=model, data=ROWS, use=[*use, *shared], stages=[Sft(epochs=2, learning_rate=5e-3)])


@pytest.mark.skipif(not HERE, reason="unsloth and unsloth_zoo are not installed; they are installed without needs")
def test_a_run_in_a_child_takes_the_steps_of_one_without_unsloth_and_patches_nothing_here(
    model: str, tmp_path: Path
) -> None:
    fast = pipeline(model, Unsloth(max_length=1024)).run(tmp_path / "fast")
    plain = pipeline(model).run(tmp_path / "plain")
    losses = [[line["loss"] for line in run.metrics if line["kind"] == "step"] for run in (fast, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][-1] < losses[0][0]
    assert "unsloth" in (tmp_path / "fast" / "processes" / "output-0.txt").read_text().lower()
    answers = [str(run.chat("Say 3.")) for run in (fast, plain)]
    assert answers[0] == answers[1]
    assert not [name for name in sys.modules if name.partition(".")[0] in ("unsloth", "unsloth_zoo")]


def problems(*installed: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[str]:
    monkeypatch.setattr(checks, "is_installed", lambda name: name in installed)
    unsloth = Unsloth(**options)
    plan = plan_for(unsloth, Sft(), default_plugin("tunekit_load_model", revision="main"))
    return [str(problem) for problem in unsloth.tunekit_check(plan=plan, machine=plan.machine)]


def test_what_it_cannot_do_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    missing, revision = problems("unsloth", monkeypatch=monkeypatch)
    assert missing == (
        "use.unsloth: needs unsloth-zoo, not installed here; `pip install --no-deps unsloth unsloth_zoo`, or leave "
        "unsloth out"
    )
    assert revision == "use.transformers.revision: is set, and the model is loaded by use.unsloth; leave it out"
    *_, short = problems("unsloth", "unsloth-zoo", monkeypatch=monkeypatch, max_length=512)
    assert short == "use.unsloth.max_length: is 512, and use.sft.batch.max_length is 1024; set it to 1024"


def test_several_processes_and_quantised_weights_are_refused() -> None:
    assert Unsloth.conflicts == {"processes", "quantization"}


def test_a_process_that_has_not_imported_it_loads_with_transformers(model: str, tmp_path: Path) -> None:
    from tunekit.testing import run_context

    unsloth = Unsloth()
    request, context = LoadRequest(model, FP32), run_context(unsloth, folder=tmp_path)
    bundle = unsloth.tunekit_load_model(request=request, context=context)
    assert type(bundle.model).__name__ == "LlamaForCausalLM"
    assert "unsloth" not in sys.modules
    with pytest.raises(Exception, match="another_folder"):
        unsloth.tunekit_load_model(request=LoadRequest("./another_folder", FP32), context=context)


def test_planning_without_unsloth_says_how_it_is_installed(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "is_installed", lambda name: False)
    with pytest.raises(PlanError, match=r"needs unsloth and unsloth-zoo, not installed here; `pip install --no-deps"):
        pipeline(model, Unsloth()).plan()
