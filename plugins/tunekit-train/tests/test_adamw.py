"""AdamW as a plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tunekit.testing.options import shows
from tunekit.values import OptimizerSettings
from tunekit_train import AdamW
from tunekit_train.testing import bundle, context, tiny_llama


def optimizer(tmp_path: Path, plugin: AdamW, weight_decay: float = 0.0) -> Any:
    model = tiny_llama()
    return plugin.tunekit_optimizer(
        bundle=bundle(model),
        named_parameters=list(model.named_parameters()),
        settings=OptimizerSettings(learning_rate=1e-3, weight_decay=weight_decay),
        context=context(tmp_path),
    )


def test_vectors_are_not_decayed(tmp_path: Path) -> None:
    decayed, kept = optimizer(tmp_path, AdamW(), weight_decay=0.1).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert {parameter.ndim for parameter in decayed["params"]} == {2}
    assert {parameter.ndim for parameter in kept["params"]} == {1}


@shows("beta1", "beta2", "eps")
@pytest.mark.parametrize(("option", "value"), [("beta1", 0.5), ("beta2", 0.5), ("eps", 1e-2)])
def test_each_option_changes_the_second_step_as_the_formula_says(option: str, value: float, tmp_path: Path) -> None:
    options = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, option: value}
    chosen = optimizer(tmp_path, AdamW(**{option: value}))
    parameter = chosen.param_groups[0]["params"][0]
    expected, mean, square = parameter.detach().clone(), 0.0, 0.0
    for step, gradient in enumerate((0.3, -0.1), start=1):
        parameter.grad = torch.full_like(parameter, gradient)
        chosen.step()
        mean = options["beta1"] * mean + (1 - options["beta1"]) * gradient
        square = options["beta2"] * square + (1 - options["beta2"]) * gradient**2
        corrected, root = mean / (1 - options["beta1"] ** step), (square / (1 - options["beta2"] ** step)) ** 0.5
        expected = expected - 1e-3 * corrected / (root + options["eps"])
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-7)


def test_the_fused_kernel_is_used_where_there_is_one(tmp_path: Path) -> None:
    assert all(group["fused"] for group in optimizer(tmp_path, AdamW()).param_groups)
