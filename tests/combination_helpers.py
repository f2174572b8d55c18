"""Combinations of techniques: what is installed, which of them are to run, and what one that runs has to show.

`docs/compatibility.py` plans them all. The suite runs a set in which each technique is once, `tests/combinations.json`;
`nox -s combos` runs one in which every two that can go together do so once.
"""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import torch

import tunekit as tk
from tunekit.catalog import Catalog, hooks_of
from tunekit.engine import open_model
from tunekit.errors import PlanError
from tunekit.plan import make_plan
from tunekit.plugin import Plugin
from tunekit.recipe import from_code
from tunekit.testing.observing import snapshot
from tunekit.values import Event
from tunekit_train import TrainConfig
from tunekit_train.heads import is_head

CHOSEN = Path(__file__).with_name("combinations.json")
OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "freeze": {"layers": 1},
    "galore": {"rank": 8, "update_interval": 4, "scale": 1.0},
    "apollo": {"rank": 8, "update_interval": 4},
    "badam": {"switch_every": 1, "order": "descending"},
    "loraplus": {"ratio": 2},
    "peft": {"method": "vera", "options": {"r": 32}},
    "vocabulary": {"tokens": ["What is"]},
}
"""Options that fit the tiny model, for plugins whose defaults are made for large ones."""
LEFT_OUT = frozenset({"stack", "compressed-tensors", "aqlm", "gptq", "awq"})
"""Plugins that need what an earlier run has left, or weights that are stored in their way; their own tests have it."""
TALKS = [{"instruction": f"What is {n} and one?", "output": f"It is {n + 1}, plainly said."} for n in range(8)]
PAIRS = [{"prompt": f"What is {n}?", "chosen": f"It is {n}, said well.", "rejected": "No idea."} for n in range(8)]
LABELLED = [{"prompt": f"What is {n}?", "completion": f"It is {n}.", "label": n % 2 == 0} for n in range(8)]
TEXTS = [{"text": "The quick brown fox jumps over the lazy dog. " * 2} for _ in range(8)]
ROLLOUT = {"prompts": 4, "epochs": 1, "max_new_tokens": 4}
STAGES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "pretrain": (TEXTS, {"batch": {"rows": 4, "max_length": 24}}),
    "sft": (TALKS, {}),
    "kto": (LABELLED, {}),
    "ppo": (TALKS, {"rollout": ROLLOUT}),
    "grpo": (TALKS, {"num_generations": 2, "max_completion_length": 4}),
    "rloo": (TALKS, {"num_generations": 2, "max_completion_length": 4}),
}
"""Rows and options of each stage; any other learns from pairs."""
OWN_ANSWERS = frozenset({"ppo", "grpo", "rloo"})
"""Stages whose loss says nothing about progress: it is that of answers that were only just given."""
COMMON: dict[str, Any] = {
    "epochs": 3,
    "learning_rate": 5e-3,
    "schedule": {"shape": "constant"},
    "batch": {"rows": 4},
    "checkpoint": {"every": 0},
}
PLAIN: dict[str, Any] = {
    "batch": {"padding": "always", "share_prompts": False},
    "compute": dict.fromkeys(
        ("lora_product", "frozen_layers", "scored_apart", "chunked_head", "checkpointing", "offload"), "never"
    ),
}
"""The engine without anything that makes it fast."""


@dataclass(frozen=True)
class Cell:
    """One combination, by the names of its plugins; none named: the default, or nothing."""

    quantizer: str | None
    adapter: tuple[str, ...]
    optimizer: str
    stage: str

    def __str__(self) -> str:
        adapter = "+".join(self.adapter) or "all-weights"
        return "-".join((self.quantizer or "dense", adapter, self.optimizer, self.stage))

    @property
    def plugins(self) -> tuple[str, ...]:
        """The plugins a recipe names for it, besides the stage."""
        return (*([self.quantizer] if self.quantizer else []), *self.adapter, self.optimizer)

    def groups(self, together: int) -> frozenset[Any]:
        """Its parts, each with its place, alone or every two."""
        return frozenset(combinations(enumerate(astuple(self)), together))


@cache
def installed() -> dict[str, type[Plugin[Any]]]:
    """The classes of all plugins that can be imported."""
    catalog = Catalog.discover()
    return {row.name: catalog.load(row.name) for row in catalog.listing() if row.status == "available"}


def answering(hook: str) -> list[str]:
    """The plugins that answer a hook."""
    return [name for name, plugin in installed().items() if hook in hooks_of(plugin) and name not in LEFT_OUT]


def adapters() -> Iterator[tuple[str, ...]]:
    """No adapter, each adapter alone, and each with every plugin that answers a hook the adapter publishes."""
    yield ()
    for adapter in answering("tunekit_attach_adapter"):
        yield (adapter,)
        published = {name for specs in installed()[adapter].hookspecs for name in vars(specs) if name[0] != "_"}
        for name, plugin in installed().items():
            if published & set(hooks_of(plugin)) and name not in LEFT_OUT:
                yield (adapter, name)


def cells(everything: bool = True) -> Iterator[Cell]:
    """Every combination of what is installed, or those in which the stage or both others are the usual ones."""
    quantizers, optimizers = [None, *answering("tunekit_quantize")], answering("tunekit_optimizer")
    parts = product(quantizers, list(adapters()), optimizers, answering("tunekit_train_stage"))
    for quantizer, adapter, optimizer, stage in parts:
        usual = stage == "sft" or (optimizer == "adamw" and (quantizer is None or adapter == ("lora",)))
        if everything or usual:
            yield Cell(quantizer, adapter, optimizer, stage)


def recipe_of(cell: Cell, model: str, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What `tunekit.Pipeline` is given; `more` are options of the stage."""
    rows, options = STAGES.get(cell.stage, (PAIRS, {}))
    use = {"precision": {"compute": "fp32"}, **{name: OPTIONS.get(name, {}) for name in cell.plugins}}
    if cell.stage in OWN_ANSWERS:
        use["reward_length"] = {"target": 3}
    stage = merged(merged(COMMON, options), more or {})
    return {"model": model, "data": rows, "use": use, "stages": [{cell.stage: stage}]}


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Options with others over them, groups merged."""
    both = {**first, **second}
    groups = [name for name in first.keys() & second.keys() if isinstance(first[name], dict)]
    return {**both, **{name: merged(first[name], second[name]) for name in groups}}


def refusal(cell: Cell, model: str, catalog: Catalog | None = None) -> PlanError | None:
    """What the planner says against it, from capabilities and options alone; None where it would run."""
    try:
        make_plan(from_code(**recipe_of(cell, model), catalog=catalog), catalog)
    except PlanError as error:
        return error
    return None


def covering(accepted: Iterable[Cell], together: int) -> list[Cell]:
    """A small set of cells, greedily chosen, that has each part, or each pair of parts, that any accepted cell has."""
    left = {cell: cell.groups(together) for cell in accepted}
    missing = frozenset().union(*left.values())
    chosen = []
    while missing:
        best = max(left, key=lambda cell: (len(left[cell] & missing), str(cell)))
        chosen.append(best)
        missing -= left.pop(best)
    return sorted(chosen, key=str)


def read_chosen() -> list[Cell]:
    """The set that is kept."""
    parts = json.loads(CHOSEN.read_text())
    return [Cell(quantizer, tuple(adapter), *others) for quantizer, adapter, *others in parts]


def all_losses(run: tk.Run) -> list[float]:
    """The loss of each step."""
    return [line["loss"] for line in run.metrics if line["kind"] == "step"]


def first_step(run: tk.Run) -> tuple[float, float]:
    """Loss and gradient norm of the first step."""
    line = next(line for line in run.metrics if line["kind"] == "step")
    return line["loss"], line["grad_norm"]


def plain_run(cell: Cell, model: str, folder: Path) -> tk.Run:
    """The first step without anything that makes it fast."""
    return tk.Pipeline(**recipe_of(cell, model, {**PLAIN, "steps": 1})).run(folder)


def on_our_engine(cell: Cell) -> bool:
    """Whether the stage has the engine's switches."""
    return issubclass(installed()[cell.stage].config_type(), TrainConfig) and cell.stage not in {"grpo", "rloo"}


def interrupted(pipeline: tk.Pipeline, folder: Path, step: int) -> tk.Run:
    """A run that Ctrl-C stops after a step, and that is then continued."""

    def stop(event: Event) -> None:
        if event.kind == "step" and event.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    try:
        pipeline.run(folder, watchers=[stop])
    except tk.errors.InterruptedRunError:
        return pipeline.resume(folder)
    raise AssertionError("the run went on after Ctrl-C")


def check_that_it_trains(cell: Cell, model: str, folder: Path) -> None:
    """The loss falls, what is to train does and nothing else, and the first step is that of the plain computation."""
    pipeline = tk.Pipeline(**recipe_of(cell, model))
    plan = pipeline.plan()
    start = open_model(plan, folder).use(plan.final_adapter).model
    before = snapshot(start)
    named = {name for name, parameter in start.named_parameters() if parameter.requires_grad}
    assert plan.estimate is not None
    assert plan.estimate.trainable == sum(before[name].numel() for name in named)

    run = pipeline.run(folder / "run")
    check_losses(cell, all_losses(run))
    after = snapshot(run.bundle.model)
    assert {name for name in after if not is_head(name)} == before.keys()
    assert all(bool(each.isfinite().all()) for each in after.values() if each.is_floating_point())
    moved = {name for name in before if not after[name].to(before[name].dtype).equal(before[name])}
    slack = 1e-6 if changes_base(cell) else 0.0
    changed = [name for name in moved - named if not torch.allclose(after[name], before[name], rtol=0, atol=slack)]
    assert not changed, f"frozen by the plan, but changed: {changed[:3]}"
    assert named - moved == set(), f"trained by the plan, but never changed: {sorted(named - moved)[:3]}"
    if on_our_engine(cell):
        check_first_step(first_step(run), first_step(plain_run(cell, model, folder / "plain")))


def changes_base(cell: Cell) -> bool:
    """Whether the adapter takes its start out of the base, which rounds when a run is opened again."""
    provided = (installed()[name].provides for name in cell.adapter)
    return any(isinstance(each, frozenset) and "base.changed" in each for each in provided)


def check_first_step(fast: tuple[float, float], plain: tuple[float, float]) -> None:
    """Loss and gradient norm are those of the plain computation."""
    for name, one, other in zip(("loss", "gradient norm"), fast, plain, strict=True):
        same = math.isclose(one, other, rel_tol=2e-3, abs_tol=1e-5)
        assert same, f"{name} is {one}, and {other} in the plain computation"


def check_losses(cell: Cell, losses: Sequence[float]) -> None:
    """They are finite, and fall where they say something about progress."""
    assert all(map(math.isfinite, losses)), losses
    half = len(losses) // 2
    falls = sum(losses[half:]) / (len(losses) - half) < sum(losses[:half]) / half
    assert falls or cell.stage in OWN_ANSWERS, losses


def write_chosen(chosen: Iterable[Cell]) -> None:
    """Keep the set."""
    lines = ",\n".join(f" {json.dumps(astuple(cell))}" for cell in chosen)
    CHOSEN.write_text(f"[\n{lines}\n]\n")
