"""Whoever looks at a checkpoint before it is loaded looks at the revision that is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tunekit as tk
from tunekit.errors import PlanError, TunekitError
from tunekit.testing import plan_for, save_tiny_model
from tunekit.testing.fixtures import hub_cache  # noqa: F401
from tunekit.testing.runs import installed
from tunekit.values import EstimateRequest, Plan

ROWS = [{"instruction": f"Say {number}.", "output": f"It is {number}."} for number in range(4)]
CHANNELS = {"num_bits": 4, "type": "int", "strategy": "channel"}
METHODS: dict[str, dict[str, Any]] = {
    "aqlm": {"num_codebooks": 2, "nbits_per_codebook": 10, "in_group_size": 4, "out_group_size": 1},
    "awq": {"bits": 4, "group_size": 32},
    "bitsandbytes": {"load_in_4bit": True},
    "compressed-tensors": {"config_groups": {"all": {"targets": ["Linear"], "weights": CHANNELS}}},
    "gptq": {"bits": 4, "group_size": 32},
    "torchao": {"quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {"group_size": None}}}},
}
"""What a checkpoint of each method says of its weights."""


def readers() -> dict[str, str]:
    """The installed quantisers that read checkpoints of a method, by name."""
    found = {}
    for name in installed().names:
        try:
            provides = installed().load(name)().provides
        except (TunekitError, ValueError):
            continue
        found.update((name, method) for method in METHODS if f"quantization.{method}" in provides)
    return found


@pytest.mark.parametrize(("name", "method"), sorted(readers().items()))
def test_a_quantiser_reads_what_the_loaded_revision_says_of_its_weights(
    name: str,
    method: str,
    hub_cache: Callable[[str, str], Path],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plugin, adapter = installed().load(name)(), installed().load("lora")(rank=4)
    asked: list[str | None] = []
    config = save_tiny_model(hub_cache("someone/tiny", "v1")) / "config.json"
    stored = {"quant_method": method, **METHODS[method]}
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": stored}))
    save_tiny_model(hub_cache("someone/tiny", "main"))
    listened(asked, monkeypatch)

    def of(revision: str | None) -> Plan:
        loader = installed().load("transformers")(revision=revision)
        return plan_for(plugin, adapter, loader, model="someone/tiny")

    for revision in (None, "v1"):
        asked.clear()
        plan = of(revision)
        list(plugin.tunekit_check(plan=plan, machine=plan.machine))
        quantization = plugin.tunekit_quantize(request=plan.load_request)
        assert asked
        assert set(asked) == {revision}, f"{name} has looked at {asked}"
        if hasattr(plugin, "tunekit_estimate"):
            estimate_of(plugin, plan)
            assert set(asked) == {revision}, f"{name} has looked at {asked} for its estimate"
        assert quantization.bits < 16


def listened(asked: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Note each revision whose config is looked up."""
    import huggingface_hub

    really = huggingface_hub.try_to_load_from_cache

    def look(repo: str, file: str, revision: str | None = None, **options: Any) -> Any:
        asked.append(revision)
        return really(repo, file, revision=revision, **options)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", look)


def estimate_of(plugin: Any, plan: Plan) -> None:
    from transformers import LlamaForCausalLM

    from tunekit.testing.tiny import tiny_config
    from tunekit.values import Estimate

    with torch.device("meta"):
        skeleton = LlamaForCausalLM(tiny_config())
    plugin.tunekit_estimate(
        request=EstimateRequest(plan, plan.load_request), estimate=Estimate(1, 1, {"weights": 1}, skeleton=skeleton)
    )


def test_a_run_of_a_revision_trains_over_the_weights_that_it_stores(
    hub_cache: Callable[[str, str], Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dense = save_tiny_model(hub_cache("someone/tiny", "main"), seed=0)
    stored = save_tiny_model(hub_cache("someone/tiny", "v1"), seed=1)
    make: Any = BitsAndBytesConfig
    quantized = AutoModelForCausalLM.from_pretrained(stored, quantization_config=make(load_in_8bit=True))
    (stored / "model.safetensors").unlink()
    quantized.save_pretrained(stored)
    assert dense != stored

    def pipeline(revision: str, bits: int) -> tk.Pipeline:
        use = {"transformers": {"revision": revision}, "bnb": {"bits": bits}, "lora": {"rank": 2}}
        return tk.Pipeline("someone/tiny", ROWS, use=use, stages=[{"sft": {"epochs": 1}}])

    with pytest.raises(PlanError, match=r"use.bnb.bits: is 4, but the weights are stored quantised already, with 8"):
        pipeline("v1", 4).plan()
    pipeline("main", 4).plan()
    run = pipeline("v1", 8).run(tmp_path / "run")
    layer = run.bundle.model.get_base_model().model.layers[0].mlp.up_proj.base_layer
    assert torch.equal(layer.weight, quantized.model.layers[0].mlp.up_proj.weight)


def test_what_is_trained_of_a_revision_is_opened_again(hub_cache: Callable[[str, str], Path], tmp_path: Path) -> None:  # noqa: F811
    """The folder of trained weights is loaded in place of the hub's, with the recipe's revision beside it."""
    save_tiny_model(hub_cache("someone/tiny", "v1"), seed=1)
    use = {"transformers": {"revision": "v1"}, "precision": {"compute": "fp32"}}
    pipeline = tk.Pipeline("someone/tiny", ROWS, use=use, stages=[{"sft": {"epochs": 1, "learning_rate": 1e-3}}])
    run = pipeline.run(tmp_path / "run")
    again = tk.open_run(tmp_path / "run")
    assert torch.equal(again.bundle.model.lm_head.weight, run.bundle.model.lm_head.weight)
