"""Combinations of techniques: what is installed, the recipe of each, what the planner says, and which of them to run.

`docs/compatibility.py` plans them all. The suite runs a set in which each technique is once, `tests/combinations.json`;
`nox -s combos` runs one in which every two that can go together do so once. What one that runs has to show is in
`combination_checks`.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from functools import cache, partial
from itertools import combinations, product
from pathlib import Path
from typing import Any
from zlib import crc32

from tunekit.catalog import Catalog, hooks_of
from tunekit.errors import PlanError
from tunekit.machine import probe
from tunekit.plan import make_plan
from tunekit.plugin import Plugin
from tunekit.recipe import from_code
from tunekit.testing import save_tiny_model

CHOSEN = Path(__file__).with_name("combinations.json")
OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "freeze": {"layers": 1},
    "galore": {"rank": 8, "update_interval": 4, "scale": 1.0},
    "apollo": {"rank": 8, "update_interval": 4},
    "badam": {"switch_every": 1, "order": "descending"},
    "loraplus": {"ratio": 2},
    "peft": {"method": "vera", "options": {"r": 32}},
    "vocabulary": {"tokens": ["What is", "The quick"]},
}
"""Options that fit the tiny model, for plugins whose defaults are made for large ones."""
TALKS = [{"instruction": f"What is {n} and one?", "output": f"It is {n + 1}, plainly said."} for n in range(8)]
PAIRS = [{"prompt": f"What is {n}?", "chosen": f"It is {n}, said well.", "rejected": "No idea."} for n in range(8)]
LABELLED = [{"prompt": f"What is {n}?", "completion": f"It is {n}.", "label": n % 2 == 0} for n in range(8)]
TEXTS = [{"text": "The quick brown fox jumps over the lazy dog. " * 2} for _ in range(8)]
SMALLER = {"badam": {"learning_rate": 1e-3}}
"""Optimisers of which each step is as large as a fresh one of Adam's."""
USUAL = (None, ("lora",), "adamw", "sft")
"""The usual parts of a combination."""
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


def _stored_quantized(dense: Path, folder: Path, method: str) -> None:
    """The dense model in the way of a method whose weights are stored before they are trained on."""
    if method == "aqlm":
        from tunekit_aqlm.testing import make_checkpoint as aqlm

        aqlm(dense, folder, bits=8)
    elif method == "compressed-tensors":
        from tunekit_compressed_tensors.testing import make_checkpoint as compressed

        compressed(dense, folder)
    else:
        from tunekit_gptq.rounding import make_checkpoint as packed

        packed(dense, folder, "awq" if method == "awq" else "gptq")


def _trained_adapter(dense: Path, folder: Path) -> None:
    """A LoRA adapter in PEFT's format whose update is not zero."""
    import peft
    from transformers import AutoModelForCausalLM

    from tunekit_lora.wrapping import peft_reading_old_names

    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    with peft_reading_old_names():
        peft.get_peft_model(AutoModelForCausalLM.from_pretrained(dense), settings).save_pretrained(folder)


class Materials:
    """What recipes name, each made when it is first asked for and kept in a folder: models, and a trained adapter."""

    makers: Mapping[str, Callable[[Path, Path], None]] = {
        **{name: partial(_stored_quantized, method=name) for name in ("gptq", "awq", "aqlm", "compressed-tensors")},
        "stack": _trained_adapter,
    }
    """How it is made of the dense model, by the plugin that cannot do without."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def model(self, quantizer: str | None) -> str:
        """The tiny model, stored as the quantiser reads it."""
        return str(self._made(quantizer) if quantizer in self.makers else self._dense())

    def options(self, plugin: str) -> Mapping[str, Any]:
        """Options that fit the tiny model."""
        return {"adapter": str(self._made("stack"))} if plugin == "stack" else OPTIONS.get(plugin, {})

    def _dense(self) -> Path:
        folder = self.folder / "dense"
        return folder if folder.exists() else save_tiny_model(folder)

    def _made(self, plugin: str | None) -> Path:
        assert plugin is not None
        folder = self.folder / plugin
        if not folder.exists():
            self.makers[plugin](self._dense(), folder)
        return folder


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


def cells() -> Iterator[Cell]:
    """Every combination of what is installed."""
    quantizers, optimizers = [None, *answering("tunekit_quantize")], answering("tunekit_optimizer")
    parts = product(quantizers, adapters(), optimizers, answering("tunekit_train_stage"))
    return (Cell(*each) for each in parts)


def sample() -> Iterator[Cell]:
    """Of all combinations those in which all but two parts are the usual ones: every two techniques are in one."""
    return (cell for cell in cells() if sum(one != other for one, other in zip(astuple(cell), USUAL, strict=True)) < 3)


def recipe_of(cell: Cell, materials: Materials, more: Mapping[str, Any] | None = None, **use: Any) -> dict[str, Any]:
    """What `tunekit.Pipeline` is given; `more` are options of the stage, `use` more plugins."""
    rows, options = STAGES.get(cell.stage, (PAIRS, {}))
    plugins = {"precision": {"compute": "fp32"}, **{name: materials.options(name) for name in cell.plugins}, **use}
    if cell.stage in OWN_ANSWERS:
        plugins["reward_length"] = {"target": 3}
    stage = merged(merged(COMMON | SMALLER.get(cell.optimizer, {}), options), more or {})
    return {"model": materials.model(cell.quantizer), "data": rows, "use": plugins, "stages": [{cell.stage: stage}]}


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Options with others over them, groups merged."""
    both = {**first, **second}
    groups = [name for name in first.keys() & second.keys() if isinstance(first[name], dict)]
    return {**both, **{name: merged(first[name], second[name]) for name in groups}}


@cache
def _surroundings() -> tuple[Catalog, Any]:
    return Catalog.discover(), probe()


def refusal(cell: Cell, materials: Materials) -> PlanError | None:
    """What the planner says against it, from capabilities and options alone; None where it would run."""
    catalog, machine = _surroundings()
    try:
        make_plan(from_code(**recipe_of(cell, materials), catalog=catalog), catalog, machine)
    except PlanError as error:
        return error
    return None


def covering(accepted: Iterable[Cell], together: int, shown: Iterable[Cell] = ()) -> list[Cell]:
    """A small set of cells, greedily chosen, that has each part, or each pair of parts, that any accepted cell has
    and none that was `shown`.

    What a cell would add only shrinks, so one that leads the queue and still adds as much as it did is the best. Of
    equals the one that a hash puts first: the first by name would all be of the same optimiser and stage.
    """
    groups = {str(cell): (cell, cell.groups(together)) for cell in accepted}
    missing = frozenset[Any]().union(*(parts for _, parts in groups.values()))
    missing = missing.difference(*(cell.groups(together) for cell in shown))
    queue = [(-len(parts), crc32(name.encode()), name) for name, (_, parts) in groups.items()]
    heapq.heapify(queue)
    chosen = []
    while missing:
        before, place, name = heapq.heappop(queue)
        cell, parts = groups[name]
        adds = len(parts & missing)
        if adds == -before:
            chosen.append(cell)
            missing -= parts
        elif adds:
            heapq.heappush(queue, (-adds, place, name))
    return sorted(chosen, key=str)


def read_chosen() -> list[Cell]:
    """The set that is kept."""
    return [cell_of(parts) for parts in json.loads(CHOSEN.read_text())]


def cell_of(parts: Iterable[Any]) -> Cell:
    """A combination as JSON holds it."""
    quantizer, adapter, optimizer, stage = parts
    return Cell(quantizer, tuple(adapter), optimizer, stage)


def write_chosen(chosen: Iterable[Cell]) -> None:
    """Keep the set."""
    lines = ",\n".join(f" {json.dumps(astuple(cell))}" for cell in chosen)
    CHOSEN.write_text(f"[\n{lines}\n]\n")
