"""Every quantiser with every adapter with every optimiser: it trains, or the plan refuses it with a reason."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import tunekit as tk
from tunekit.catalog import Catalog, hooks_of
from tunekit.engine import open_model
from tunekit.errors import PlanError
from tunekit.plugin import Plugin
from tunekit.testing import conversations, save_tiny_model

OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "freeze": {"layers": 1},
    "galore": {"rank": 8, "update_interval": 4, "scale": 1.0},
}
"""Options that fit the tiny model, for plugins whose defaults are made for large ones."""

STAGE = {"sft": {"epochs": 3, "learning_rate": 5e-3, "checkpoint": {"every": 0}}}


@dataclass(frozen=True)
class Cell:
    """One combination, by the names of its plugins; none named: the default, or nothing."""

    quantizer: str | None
    adapter: tuple[str, ...]
    optimizer: str

    def __str__(self) -> str:
        return "-".join((self.quantizer or "dense", "+".join(self.adapter) or "all-weights", self.optimizer))

    @property
    def plugins(self) -> tuple[str, ...]:
        """The plugins a recipe names for it."""
        return (*([self.quantizer] if self.quantizer else []), *self.adapter, self.optimizer)


def installed() -> dict[str, type[Plugin[Any]]]:
    catalog = Catalog.discover()
    return {name: catalog.load(name) for name in catalog.names}


def answering(hook: str) -> list[str]:
    return [name for name, plugin in installed().items() if hook in hooks_of(plugin)]


def adapters() -> Iterator[tuple[str, ...]]:
    """No adapter, each adapter alone, and each with every plugin that answers a hook the adapter publishes."""
    yield ()
    for adapter in answering("tunekit_attach_adapter"):
        yield (adapter,)
        published = {name for specs in installed()[adapter].hookspecs for name in vars(specs) if name[0] != "_"}
        for name, plugin in installed().items():
            if published & set(hooks_of(plugin)):
                yield (adapter, name)


CELLS = [
    Cell(*parts)
    for parts in product([None, *answering("tunekit_quantize")], adapters(), answering("tunekit_optimizer"))
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("combinations") / "model"))


def pipeline_of(cell: Cell, model: str) -> tk.Pipeline:
    rows = [
        {"messages": [{"role": turn.role, "content": turn.content} for turn in example.messages]}
        for example in conversations()
    ]
    use = {"precision": {"compute": "fp32"}, **{name: OPTIONS.get(name, {}) for name in cell.plugins}}
    return tk.Pipeline(model=model, data=rows, use=use, stages=[STAGE])


def refusal(cell: Cell, model: str) -> PlanError | None:
    try:
        pipeline_of(cell, model).plan()
    except PlanError as error:
        return error
    return None


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_combination_trains_or_is_refused_with_a_reason(cell: Cell, model: str, tmp_path: Path) -> None:
    refused = refusal(cell, model)
    if refused is None:
        check_that_it_trains(cell, model, tmp_path)
    else:
        assert all(problem.where and problem.message and problem.remedy for problem in refused.problems), refused


def check_that_it_trains(cell: Cell, model: str, folder: Path) -> None:
    pipeline = pipeline_of(cell, model)
    plan = pipeline.plan()
    start = open_model(plan, folder).use(plan.final_adapter).model
    before = {name: parameter.detach().clone() for name, parameter in start.named_parameters()}
    named = {name for name, parameter in start.named_parameters() if parameter.requires_grad}
    assert plan.estimate is not None
    assert plan.estimate.trainable == sum(before[name].numel() for name in named)

    run = pipeline.run(folder / "run")
    losses = [line["loss"] for line in run.metrics if line["kind"] == "step"]
    after = dict(run.bundle.model.named_parameters())
    assert after.keys() == before.keys()
    assert all(math.isfinite(loss) for loss in losses)
    half = len(losses) // 2
    assert sum(losses[half:]) / (len(losses) - half) < sum(losses[:half]) / half, losses
    assert all(bool(parameter.isfinite().all()) for parameter in after.values() if parameter.is_floating_point())
    moved = {name for name in before if not after[name].detach().to(before[name].dtype).equal(before[name])}
    assert moved - named == set(), "frozen by the plan, but changed"
    assert named - moved == set(), "trained by the plan, but never changed"


def test_each_plugin_trains_in_some_combination(model: str) -> None:
    trained = {name for cell in CELLS if refusal(cell, model) is None for name in cell.plugins}
    assert trained == {name for cell in CELLS for name in cell.plugins}


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (Cell("bnb", (), "adamw"), "bnb needs 'adapter', which nothing here provides; add `lora: {}` to use"),
        (Cell(None, ("lora",), "galore"), "galore .* does not work with lora .*, which provides 'adapter'"),
    ],
    ids=str,
)
def test_a_refusal_says_which_plugins_do_not_fit_and_why(cell: Cell, reason: str, model: str) -> None:
    assert cell in CELLS
    with pytest.raises(PlanError, match=reason):
        pipeline_of(cell, model).plan()
