"""Weights that are stored quantised are read by whom the recipe names for it, or refused in the plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tunekit.errors import PlanError
from tunekit.plugin import Plugin, PluginConfig
from tunekit.testing import FP32, fake_machine, plan_for, save_tiny_model
from tunekit.values import Estimate, EstimateRequest, LoadRequest
from tunekit_transformers import Transformers, stored_quantization
from tunekit_transformers.frozen_product import StoredLinear, dense_linear
from tunekit_transformers.stored import stored_problems


class NoOptions(PluginConfig):
    """No options."""


class Other(Plugin[NoOptions]):
    """A quantiser of another method."""

    provides = frozenset({"quantization", "quantization.other"})


def written(folder: Path, **stored: object) -> str:
    config = {"model_type": "llama", "quantization_config": stored}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").touch()
    return str(folder)


@pytest.mark.parametrize(
    ("stored", "method"),
    [({"quant_method": "gptq", "bits": 4}, "gptq"), ({"load_in_8bit": True}, "bitsandbytes"), ({}, None)],
)
def test_the_method_is_read_from_the_config_even_where_it_has_no_name_yet(tmp_path, stored, method):
    found = stored_quantization(LoadRequest(written(tmp_path, **stored), FP32))
    assert (None if found is None else found["quant_method"]) == method
    assert stored_quantization(LoadRequest(str(tmp_path / "nowhere"), FP32)) is None


def test_a_method_that_nobody_reads_is_refused_in_the_plan_with_what_to_do(tmp_path):
    model = written(tmp_path, quant_method="fp6")
    for plugins, what in (((), ""), ((Other(),), ", which other cannot read")):
        plan = plan_for(Transformers(), *plugins, model=model)
        (problem,) = plan.plugins[0].plugin.tunekit_check(plan=plan, machine=fake_machine())
        assert str(problem).startswith(f"model: the weights of {model} are stored quantised by fp6{what}")
        assert "no installed plugin reads it" in str(problem)


def test_who_provides_the_method_is_left_to_it(tmp_path):
    plan = plan_for(Transformers(), Other(), model=written(tmp_path, quant_method="other"))
    assert list(stored_problems(stored_quantization(plan.load_request), plan)) == []


def test_what_the_plan_could_not_see_is_refused_by_the_estimate(tmp_path):
    """A model on the hub whose config comes over the network only then."""
    model = str(save_tiny_model(tmp_path / "model"))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True, "_load_in_8bit": True}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    plugin = Transformers()
    request = LoadRequest(model, FP32)
    with pytest.raises(PlanError, match="stored quantised by bitsandbytes"):
        plugin.tunekit_estimate(request=EstimateRequest(plan_for(plugin, model=model), request), estimate=Estimate())


def test_a_layer_of_stored_parts_is_a_linear_layer_to_who_asks():
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(4, 3, generator=generator), torch.randn(4, generator=generator)
    inputs = torch.randn(2, 3, generator=generator, requires_grad=True)
    layer = StoredLinear((4, 3), {"weight": weight / 2}, bias, lambda it: it.parts()["weight"] * 2)
    plain = dense_linear(weight, bias)
    assert isinstance(layer, torch.nn.Linear)
    assert torch.equal(layer.weight, plain.weight)
    assert torch.equal(layer(inputs), plain(inputs))
    (ours,) = torch.autograd.grad(layer(inputs).square().sum(), inputs)
    (theirs,) = torch.autograd.grad(plain(inputs).square().sum(), inputs)
    torch.testing.assert_close(ours, theirs)
