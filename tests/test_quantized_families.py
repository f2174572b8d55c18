"""Quantisers over other architectures than Llama's: what they do there, and what they refuse before it is loaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from combination_helpers import TALKS

import tunekit as tk
from tunekit.errors import PlanError
from tunekit.testing import tiny_tokenizer
from tunekit.testing.observing import logits
from tunekit_train.testing import family_model

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")  # PEFT sets it itself

LORA: dict[str, Any] = {"lora": {"rank": 4}, "precision": {"compute": "fp32"}}
SMALL: dict[str, dict[str, Any]] = {"gptq": {"group_size": 16}, "awq": {"group_size": 16}, "hqq": {"group": 32}}
"""Options that fit 32 inputs."""
FUSED = 2 * 4 * (2 * 48 * 32 + 32 * 48)
"""Parameters of the experts of the tiny Mixtral: two layers of four experts, each of three matrices 48 x 32."""


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a tiny model by family, made when first asked for."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            model = family_model(name)
            model.resize_token_embeddings(512, mean_resizing=False)
            model.save_pretrained(made[name])
            tiny_tokenizer().save_pretrained(str(made[name]))
        return made[name]

    return folder


def pipeline(model: Path, use: dict[str, Any], **more: Any) -> tk.Pipeline:
    stage = {"sft": {"epochs": 3, "learning_rate": 2e-2, "checkpoint": {"every": 0}}}
    return tk.Pipeline(str(model), TALKS, use=use, stages=[stage], **more)


@pytest.mark.parametrize("quantizer", ["torchao", "gptq", "awq", "qat"])
def test_layers_that_lie_the_other_way_round_are_refused_where_they_are_not_known(family: Any, quantizer: str) -> None:
    use = {quantizer: SMALL.get(quantizer, {}), **({} if quantizer == "qat" else LORA)}
    message = rf"use\.{quantizer}: cannot round transformer\.h\.0\.attn\.c_attn, which is a Conv1D, .* no linear layer"
    with pytest.raises(PlanError, match=message):
        pipeline(family("gpt2"), use).plan()


@pytest.mark.parametrize("target", ["torchao", "gptq", "awq", "compressed-tensors"])
def test_exports_refuse_layers_that_lie_the_other_way_round(family: Any, target: str) -> None:
    options = {**SMALL.get(target, {}), **({"group": 16} if target == "compressed-tensors" else {})}
    with pytest.raises(PlanError, match=rf"export\.0\.{target}: cannot round .* a Conv1D, .*; .* `merged: {{}}`"):
        pipeline(family("gpt2"), LORA, export=[{target: options}]).plan()


@pytest.mark.parametrize("quantizer", ["bnb", "hqq"])
def test_layers_that_lie_the_other_way_round_train_are_opened_and_merged(
    family: Any, quantizer: str, tmp_path: Path
) -> None:
    """With weights counted as they are stored: eight layers of GPT-2, whose inputs and outputs differ."""
    given = pipeline(family("gpt2"), {quantizer: SMALL.get(quantizer, {}), **LORA})
    run = given.run(tmp_path / "run")
    losses = [line["loss"] for line in run.metrics if line["kind"] == "step"]
    assert losses[-1] < losses[0] - 0.3
    assert bool((logits(tk.open_run(tmp_path / "run").bundle.model) == logits(run.bundle.model)).all())
    exported = run.export("merged").verification
    assert exported.kl < 1e-6 < 1e-3 < exported.base_kl


@pytest.mark.parametrize("quantizer", ["bnb", "hqq", "torchao"])
def test_the_plan_tells_how_much_of_a_mixture_stays_dense(family: Any, quantizer: str) -> None:
    estimate = pipeline(family("mixtral"), {quantizer: SMALL.get(quantizer, {}), **LORA}).plan().estimate
    assert estimate is not None
    (note,) = (note for note in estimate.notes if "experts" in note)
    base = estimate.parameters - estimate.trainable
    share = math.floor(100 * FUSED / base + 0.5)
    assert note == (
        f"{FUSED:,} of {base:,} parameters ({share}%) are fused experts, which are no linear layers: "
        "they are not quantised, and stay dense"
    )
    assert estimate.memory["weights"] > 4 * FUSED


@pytest.mark.parametrize("target", ["torchao", "compressed-tensors"])
def test_the_plan_tells_how_much_of_an_exported_mixture_stays_dense(family: Any, target: str) -> None:
    export = [{target: {"group": 16} if target == "compressed-tensors" else {}}]
    estimate = pipeline(family("mixtral"), LORA, export=export).plan().estimate
    assert estimate is not None
    assert [note for note in estimate.notes if "fused experts" in note]


@pytest.mark.parametrize("quantizer", ["gptq", "awq"])
@pytest.mark.parametrize("as_export", [False, True], ids=["use", "export"])
def test_experts_that_would_not_be_read_again_are_refused_before_hours_are_spent(
    family: Any, quantizer: str, as_export: bool
) -> None:
    wanted = {quantizer: SMALL[quantizer]}
    given = (LORA, {"export": [wanted]}) if as_export else ({**wanted, **LORA}, {})
    key = rf"export\.0\.{quantizer}" if as_export else rf"use\.{quantizer}"
    with pytest.raises(PlanError, match=rf"{key}: stores experts one by one, .*\.mlp\.experts\..* would be missing"):
        pipeline(family("mixtral"), given[0], **given[1]).plan()


@pytest.mark.parametrize("as_export", [False, True], ids=["use", "export"])
def test_awq_refuses_layers_that_do_not_divide_into_its_blocks(family: Any, as_export: bool) -> None:
    """Of Qwen2, whose queries have 32 outputs, and keys and values 16: only what makes queries and keys may."""
    given = (LORA, {"export": [{"awq": SMALL["awq"]}]}) if as_export else ({"awq": SMALL["awq"], **LORA}, {})
    message = (
        r"awq: model\.layers\.0\.self_attn\.v_proj has 16 outputs, and gptqmodel takes them in blocks of 64; train "
    )
    with pytest.raises(PlanError, match=message):
        pipeline(family("qwen2"), given[0], **given[1]).plan()
