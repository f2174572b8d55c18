"""Every installed optimiser: in several processes it does what it does in one, or is refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tunekit as tk
from tunekit.catalog import Catalog, hooks_of
from tunekit.errors import PlanError
from tunekit.plugin import Plugin
from tunekit.testing import plan_for, save_tiny_model
from tunekit_distributed import Ddp, Fsdp, Zero
from tunekit_lora import Lora
from tunekit_sft import Sft

OPTIONS: dict[str, dict[str, Any]] = {
    "galore": {"rank": 8, "update_interval": 2},
    "apollo": {"rank": 8, "update_interval": 2},
    "loraplus": {"ratio": 2},
}
"""Options that fit the tiny model."""
ALONE = {"badam"}
"""Those that want one process."""
BATCH = {"rows": 2, "accumulation": 2}
ROWS = [
    {"instruction": f"say {number}", "output": f"{number} it is, and {number + 1} comes next"} for number in range(8)
]


def optimizers() -> dict[str, Plugin[Any]]:
    catalog = Catalog.discover()
    plugins = {name: catalog.load(name) for name in catalog.names}
    return {
        name: plugin(**OPTIONS.get(name, {}))
        for name, plugin in plugins.items()
        if "tunekit_optimizer" in hooks_of(plugin)
    }


def problems(launcher: Any, optimizer: Plugin[Any]) -> list[str]:
    """Why these two do not go together, by the plan."""
    adapters = [Lora(rank=4)] if "adapter.lora" in optimizer.requires else []
    try:
        plan = plan_for(launcher, optimizer, *adapters, Sft(batch=BATCH, steps=2))
    except PlanError as error:
        return [str(problem) for problem in error.problems]
    return [str(problem) for problem in launcher.tunekit_check(plan, plan.machine)]


def test_what_looks_at_more_than_one_number_is_refused_where_gradients_are_in_parts() -> None:
    for name, optimizer in optimizers().items():
        apart = "optimizer.elementwise" not in optimizer.provides
        for launcher in (Fsdp(processes=2), Zero(processes=2)):
            assert bool(problems(launcher, optimizer)) == apart, name
        assert bool(problems(Ddp(processes=2), optimizer)) == (name in ALONE), name


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("optimizers") / "model", num_hidden_layers=1))


def losses(folder: Path, model: str, use: dict[str, Any], *stages: dict[str, Any]) -> list[float]:
    options = {"learning_rate": 1e-3, "batch": BATCH, "checkpoint": {"every": 0}, "schedule": {"shape": "constant"}}
    planned = [{"sft": {**options, **stage}} for stage in stages]
    run = tk.Pipeline(model, ROWS, {"precision": {"compute": "fp32"}, **use}, planned).run(folder)
    return [line["loss"] for line in run.metrics if line["kind"] == "step"]


def test_with_ddp_each_does_in_two_processes_what_it_does_in_one(model: str, tmp_path: Path) -> None:
    names = [name for name, each in optimizers().items() if name not in {"adamw", *ALONE} and not each.requires]
    stages = [{"steps": 2, "use": {name: OPTIONS.get(name, {})}} for name in names]
    one = losses(tmp_path / "one", model, {}, *stages)
    two = losses(tmp_path / "two", model, {"ddp": {"processes": 2}}, *stages)
    assert len(one) == 2 * len(names)
    assert two == pytest.approx(one, abs=2e-5)


def test_in_parts_the_factors_of_loraplus_keep_their_rates(model: str, tmp_path: Path) -> None:
    lora, rates = {"lora": {"rank": 4}}, {"loraplus": {"ratio": 16}}
    one = losses(tmp_path / "one", model, {**lora, **rates}, {"steps": 3})
    plain = losses(tmp_path / "plain", model, lora, {"steps": 3})
    parts = losses(tmp_path / "parts", model, {**lora, **rates, "fsdp": {"processes": 2}}, {"steps": 3})
    assert parts == pytest.approx(one, abs=2e-5)
    assert abs(one[-1] - plain[-1]) > 1e-4
