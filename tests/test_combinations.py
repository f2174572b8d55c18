"""Every quantiser with every adapter, optimiser and stage: it trains, or the plan refuses it with a reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from combination_helpers import (
    Cell,
    all_losses,
    cells,
    check_that_it_trains,
    interrupted,
    read_chosen,
    recipe_of,
    refusal,
)

import tunekit as tk
from tunekit.catalog import Catalog
from tunekit.errors import PlanError
from tunekit.testing import save_tiny_model

CHOSEN = read_chosen()
EVERYTHING = "TUNEKIT_COMBINATIONS" in os.environ
"""Whether `nox -s combos` has asked for what takes long."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("combinations") / "model"))


@pytest.fixture(scope="module")
def accepted(model: str) -> Sequence[Cell]:
    """What the planner accepts of all there is; whatever it refuses, it refuses with reasons."""
    catalog, found = Catalog.discover(), []
    for cell in cells(EVERYTHING):
        refused = refusal(cell, model, catalog)
        if refused is None:
            found.append(cell)
        else:
            assert all(each.where and each.message and each.remedy for each in refused.problems), (cell, refused)
    return found


def test_each_technique_runs_in_a_combination(accepted: Sequence[Cell], model: str) -> None:
    wanted = frozenset().union(*(cell.groups(1) for cell in accepted))
    assert wanted <= frozenset().union(*(cell.groups(1) for cell in CHOSEN)), "run `docs/compatibility.py --choose`"
    assert not [cell for cell in CHOSEN if refusal(cell, model)], "run `docs/compatibility.py --choose`"


def test_planning_imports_no_torch(model: str) -> None:
    """Whatever the plugins check, nobody waits for it: a plan without its estimate is a matter of milliseconds."""
    script = (
        "import json, sys\n"
        "from tunekit.plan import make_plan\n"
        "from tunekit.recipe import from_code\n"
        "for recipe in json.load(sys.stdin):\n"
        "    make_plan(from_code(**recipe))\n"
        "    assert 'torch' not in sys.modules, recipe\n"
    )
    recipes = json.dumps([recipe_of(cell, model) for cell in CHOSEN])
    subprocess.run([sys.executable, "-c", script], input=recipes, text=True, check=True)


@pytest.mark.parametrize("cell", CHOSEN, ids=str)
def test_a_combination_trains(cell: Cell, model: str, tmp_path: Path) -> None:
    check_that_it_trains(cell, model, tmp_path)


@pytest.mark.skipif(not EVERYTHING, reason="`nox -s combos` runs these")
@pytest.mark.parametrize("cell", CHOSEN, ids=str)
def test_a_combination_goes_on_to_the_same_bits_after_ctrl_c(cell: Cell, model: str, tmp_path: Path) -> None:
    pipeline = tk.Pipeline(**recipe_of(cell, model))
    whole, resumed = pipeline.run(tmp_path / "whole"), interrupted(pipeline, tmp_path / "resumed", 2)
    assert all_losses(whole) == all_losses(resumed)
    one, two = (dict(run.bundle.model.named_parameters()) for run in (whole, resumed))
    assert all(torch.equal(weight, two[name]) for name, weight in one.items())


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (Cell("bnb", (), "adamw", "sft"), "bnb needs 'adapter', which nothing here provides; add `lora: {}` to use"),
        (Cell(None, ("lora",), "galore", "sft"), "galore .* not work with lora .*, which provides 'adapter'"),
    ],
    ids=str,
)
def test_a_refusal_says_which_plugins_do_not_fit_and_why(cell: Cell, reason: str, model: str) -> None:
    assert cell in set(cells())
    with pytest.raises(PlanError, match=reason):
        tk.Pipeline(**recipe_of(cell, model)).plan(estimate=False)
