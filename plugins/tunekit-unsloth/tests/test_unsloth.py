"""Unsloth: refused where it is missing, imported in a child alone, and a run with it is an ordinary run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tunekit as tk
from tunekit.errors import PlanError, TunekitError
from tunekit.testing import LoaderSuite, default_plugin, plan_for, run_context, save_tiny_model
from tunekit.testing.fixtures import hub_cache  # noqa: F401
from tunekit.testing.tiny import tiny_model
from tunekit.values import LoadRequest
from tunekit_attention import Attention
from tunekit_lora import Lora
from tunekit_rope import Rope
from tunekit_sft import Sft
from tunekit_train.testing import FP32
from tunekit_unsloth import Unsloth, checks

ROWS = [{"instruction": f"Say {number}.", "output": f"It is {number}."} for number in range(8)]
HERE = all(checks.is_installed(name) for name in checks.NEEDED)


class TestUnsloth(LoaderSuite):
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


def problems(
    model: str, *installed: str, monkeypatch: pytest.MonkeyPatch, others: Any = (), **options: Any
) -> list[str]:
    monkeypatch.setattr(checks, "is_installed", lambda name: name in installed)
    unsloth = Unsloth(**options)
    plan = plan_for(unsloth, Sft(), *others, model=model)
    return [str(problem) for problem in unsloth.tunekit_check(plan=plan, machine=plan.machine)]


def test_what_it_cannot_do_is_refused_with_what_to_do(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (missing,) = problems(model, "unsloth", monkeypatch=monkeypatch)
    assert missing == (
        "use.unsloth: needs unsloth-zoo, not installed here; `pip install --no-deps unsloth unsloth_zoo`, or leave "
        "unsloth out"
    )
    both = ("unsloth", "unsloth-zoo")
    (short,) = problems(model, *both, monkeypatch=monkeypatch, max_length=512)
    assert short == "use.unsloth.max_length: is 512, and use.sft.batch.max_length is 1024; set it to 1024"
    (revision,) = problems(model, *both, monkeypatch=monkeypatch, revision="v1")
    assert revision == f"use.unsloth.revision: is v1, but {model} is not on the hub; leave it out"
    idle = problems(model, *both, monkeypatch=monkeypatch, attention="eager", allow_pickle=True)
    assert idle == [
        f"use.unsloth.{option}: is nothing that unsloth takes where it trains; leave it out"
        for option in ("allow_pickle", "attention")
    ]
    passed_over = problems(model, *both, monkeypatch=monkeypatch, others=(Rope(length=4096), Attention(kind="sdpa")))
    assert passed_over == [
        "use.unsloth: reads the config of the checkpoint, so that positions would be scaled in the plan and not in the "
        "run; leave out unsloth or rope",
        "use.unsloth: chooses the attention by itself; leave out unsloth or attention",
    ]


def test_several_processes_and_quantised_weights_are_refused() -> None:
    assert Unsloth.conflicts == {"processes", "quantization"}


class Fake:
    """Unsloth in the child, of which nothing is asked but to load: what it was given, and the model by transformers."""

    def __init__(self) -> None:
        self.given: list[dict[str, Any]] = []
        self.FastLanguageModel = self

    def from_pretrained(self, **given: Any) -> tuple[Any, None]:
        from transformers import AutoModelForCausalLM

        self.given.append(given)
        return AutoModelForCausalLM.from_pretrained(given["model_name"], dtype=given["dtype"]), None


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """This process as the child, with a stand-in for unsloth."""
    fake = Fake()
    monkeypatch.setitem(sys.modules, "unsloth", fake)
    return fake


def loaded(name: str, folder: Path, request: Any = None, **options: Any) -> Any:
    unsloth = Unsloth(**options)
    asked = request or LoadRequest(name, FP32)
    return unsloth.tunekit_load_model(request=asked, context=run_context(unsloth, folder=folder)).model


def test_the_child_loads_the_very_model_and_revision(
    hub_cache: Callable[[str, str], Path],  # noqa: F811
    child: Fake,
    tmp_path: Path,
) -> None:
    """By its files, so that no copy of unsloth's own is taken for it."""
    for seed, revision in enumerate(("main", "v1")):
        save_tiny_model(hub_cache("someone/tiny", revision), seed)
    model = loaded("someone/tiny", tmp_path, revision="v1", max_length=512)
    assert torch.equal(model.lm_head.weight, tiny_model(1).lm_head.weight)
    assert model.name_or_path == "someone/tiny"
    (given,) = child.given
    assert (given["max_seq_length"], given["use_exact_model_name"]) == (512, True)
    tokenizer = Unsloth(revision="v1").tunekit_load_tokenizer(LoadRequest("someone/tiny", FP32), run_context())
    assert tokenizer.name_or_path == "someone/tiny"


def test_the_child_refuses_what_unsloth_would_pass_over(model: str, child: Fake, tmp_path: Path) -> None:
    changed = LoadRequest(model, FP32).configured(lambda config: None)
    with pytest.raises(TunekitError, match="another plugin changes the model's config"):
        loaded(model, tmp_path, changed)
    with pytest.raises(PlanError, match=r"max_length: is 4096, and the model reads 2048: beyond that unsloth scales"):
        loaded(model, tmp_path, max_length=4096)
    part = save_tiny_model(tmp_path / "part")
    tensors = load_file(part / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TunekitError, match=r"lack model\.norm\.weight, which would be random"):
        loaded(str(part), tmp_path)
    assert not child.given


def test_a_length_that_would_scale_positions_is_refused_in_the_plan(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "is_installed", lambda name: True)
    with pytest.raises(PlanError, match=r"use\.unsloth\.max_length: is 4096, .* set it to 2048 or less"):
        pipeline(model, Unsloth(max_length=4096)).plan()


def test_a_process_that_has_not_imported_it_loads_with_transformers(model: str, tmp_path: Path) -> None:
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
