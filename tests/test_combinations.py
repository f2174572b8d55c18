"""Every quantiser with every adapter, optimiser and stage: it trains, or the plan refuses it with a reason."""

from __future__ import annotations

import gc
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from combination_checks import FAILED, QUESTIONS, answers
from combination_helpers import (
    Cell,
    Materials,
    answering,
    cells,
    covering,
    read_chosen,
    recipe_of,
    refusal,
    sample,
)
from combination_page import page
from combination_results import PAGE, Results

import tunekit as tk
from tunekit.errors import PlanError

CHOSEN = read_chosen()
MORE = {cell: QUESTIONS[1 + number % 3] for number, cell in enumerate(CHOSEN[::2])}
"""What the suite asks of every other one besides that it trains. `nox -s combos` asks everything."""

QUANTIZERS: list[tuple[str, dict[str, Any]]] = [(each, {}) for each in answering("tunekit_quantize")]


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Materials]:
    """Models and an adapter; what is imported by now is not walked over at the end of each run."""
    gc.freeze()
    yield Materials(tmp_path_factory.mktemp("combinations"))
    gc.unfreeze()


@pytest.fixture(scope="module")
def accepted(materials: Materials) -> Sequence[Cell]:
    """What the planner accepts of a sample in which every two techniques are; what it refuses, with reasons."""
    found = []
    for cell in sample():
        refused = refusal(cell, materials)
        if refused is None:
            found.append(cell)
        else:
            assert all(each.where and each.message and each.remedy for each in refused.problems), (cell, refused)
    return found


def test_each_technique_runs_in_a_combination(accepted: Sequence[Cell], materials: Materials) -> None:
    wanted = frozenset().union(*(cell.groups(1) for cell in accepted))
    assert wanted <= frozenset().union(*(cell.groups(1) for cell in CHOSEN)), "run `docs/compatibility.py --choose`"
    assert not [cell for cell in CHOSEN if refusal(cell, materials)], "run `docs/compatibility.py --choose`"


def test_planning_imports_no_torch(materials: Materials) -> None:
    """Whatever the plugins check, nobody waits for it: a plan without its estimate is a matter of milliseconds."""
    script = (
        "import json, sys\n"
        "from tunekit.plan import make_plan\n"
        "from tunekit.recipe import from_code\n"
        "for recipe in json.load(sys.stdin):\n"
        "    make_plan(from_code(**recipe))\n"
        "    assert 'torch' not in sys.modules, recipe\n"
    )
    recipes = json.dumps([recipe_of(cell, materials) for cell in CHOSEN])
    subprocess.run([sys.executable, "-c", script], input=recipes, text=True, check=True)


@pytest.mark.parametrize("cell", CHOSEN, ids=str)
def test_a_combination_trains_and_shows_what_else_it_is_asked(cell: Cell, materials: Materials, tmp_path: Path) -> None:
    asked = ["trains", *([MORE[cell]] if cell in MORE else [])]
    assert list(answers(cell, materials, tmp_path, asked)) == asked


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (Cell("bnb", (), "adamw", "sft"), "bnb needs 'adapter', which nothing here provides; add `lora: {}` to use"),
        (Cell(None, ("lora",), "galore", "sft"), "galore .* not work with lora .*, which provides 'adapter'"),
    ],
    ids=str,
)
def test_a_refusal_says_which_plugins_do_not_fit_and_why(cell: Cell, reason: str, materials: Materials) -> None:
    assert cell in set(cells())
    with pytest.raises(PlanError, match=reason):
        tk.Pipeline(**recipe_of(cell, materials)).plan(estimate=False)


@pytest.mark.parametrize(
    ("quantizer", "adapter"), [*((each, "lora") for each in answering("tunekit_quantize")), ("bnb", "peft")]
)
def test_a_module_that_is_quantised_trains_with_no_adapter_as_a_whole(
    quantizer: str, adapter: str, materials: Materials
) -> None:
    """It would crash, or train nothing: most hold no weight that could."""
    cell = Cell(quantizer, (adapter,), "adamw", "sft")
    for module, refused in (("down_proj", True), ("layers.1.mlp", True), ("lm_head", False)):
        recipe = recipe_of(cell, materials)
        recipe["use"][adapter] = {**recipe["use"][adapter], "modules_to_save": [module]}
        pipeline = tk.Pipeline(**recipe)
        if refused:
            with pytest.raises(PlanError, match=f"use.{adapter}.modules_to_save: {module} is quantised"):
                pipeline.plan()
        else:
            assert pipeline.plan().estimate is not None


@pytest.mark.parametrize(
    ("quantizer", "options"), [*QUANTIZERS, ("torchao", {"kind": "int4"}), ("torchao", {"kind": "float8"})]
)
def test_weights_that_are_quantised_do_not_train_themselves(
    quantizer: str, options: dict[str, Any], materials: Materials
) -> None:
    """Rounded again after each step they would move by whole steps, or not at all."""
    recipe = recipe_of(Cell(quantizer, (), "adamw", "sft"), materials)
    recipe["use"][quantizer] = options
    reason = rf"use\.{quantizer}: {quantizer} needs 'adapter', which nothing here provides; add `lora: {{}}` to use"
    with pytest.raises(PlanError, match=reason):
        tk.Pipeline(**recipe).plan(estimate=False)


@pytest.mark.parametrize(("quantizer", "options"), [*QUANTIZERS, ("bnb", {"bits": 8}), ("torchao", {"kind": "float8"})])
def test_a_quantised_policy_starts_as_its_reference(
    quantizer: str, options: dict[str, Any], materials: Materials, tmp_path: Path
) -> None:
    """A reference is scored in evaluation, the policy in training: where layers differ, pairs seem learnt at once."""
    cell = Cell(quantizer, ("lora",), "adamw", "dpo")
    recipe = recipe_of(cell, materials, {"steps": 1}, **({quantizer: options} if options else {}))
    first = next(line for line in tk.Pipeline(**recipe).run(tmp_path / "run").metrics if line["kind"] == "step")
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (first["reward_chosen"], first["reward_rejected"], first["margin"]) == pytest.approx((0, 0, 0), abs=1e-6)


def test_a_covering_set_has_every_pair_and_is_little_larger_than_the_largest_table() -> None:
    every = [Cell(q, (a,), o, s) for q in (None, "q") for a in "abc" for o in "opr" for s in "stuv"]
    every.remove(Cell(None, ("a",), "o", "s"))
    chosen = covering(every, 2)
    pairs = [frozenset().union(*(cell.groups(2) for cell in some)) for some in (every, chosen)]
    assert pairs[0] == pairs[1]
    assert 12 <= len(chosen) <= 16
    assert covering(every, 2, chosen) == []
    assert len(covering(every, 2, chosen[1:])) == 1


def test_the_page_is_what_the_results_say() -> None:
    assert PAGE.read_text() == page(Results.read()), "run `python docs/compatibility.py`"


def test_the_results_know_every_technique_that_is_installed() -> None:
    planned = {json.dumps(part) for *pair, _ in Results.read().pairs for part in pair}
    missing = {json.dumps(part) for cell in cells() for (part,) in cell.groups(1)} - planned
    assert not missing, "run `python docs/compatibility.py`"


def test_the_results_say_what_the_planner_says(accepted: Sequence[Cell]) -> None:
    """Of every two techniques of which the sample has a combination."""
    parts = {json.dumps(pair): why for *pair, why in Results.read().pairs}
    found = {json.dumps(pair) for cell in accepted for pair in cell.groups(2)}
    refused = {json.dumps(pair) for cell in set(sample()) - set(accepted) for pair in cell.groups(2)} - found
    assert not [pair for pair in found if parts[pair] is not None], "run `python docs/compatibility.py`"
    assert refused <= parts.keys()


def test_the_page_counts_a_failure_and_claims_no_pair_that_was_not_run() -> None:
    ran = {"one": [[None, ["lora"], "adamw", "sft"], {"trains": "yes", "gradients": f"{FAILED}: E: far"}]}
    ran["two"] = [[None, ["lora"], "adamw", "dpo"], dict.fromkeys(QUESTIONS, "yes")]
    parts = [[kind, part] for kind, part in enumerate((None, ["lora"], "adamw", "sft"))]
    pairs = [[*pair, None] for pair in combinations(parts, 2)]
    pairs += [
        [[2, "adamw"], [3, "dpo"], None],
        [[2, "muon"], [3, "dpo"], None],
        [[2, "muon"], [3, "sft"], "the reason"],
    ]
    text = page(Results(planned=9, accepted=8, pairs=pairs, ran=ran))
    assert "**2** of those it accepts were run" in text
    assert "**1** of these showed all" in text
    assert "| dpo | ● | ○ |" in text
    assert "| sft | ✗ | a |" in text
    assert "- **a**: the reason" in text
    assert "- `one`, gradients: E: far" in text
