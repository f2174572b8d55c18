"""The plan: what a run will do, in order, who does it and why, and what it is expected to cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .data import Mixing, Source
from .machine import Machine, Precision
from .model import DEFAULT_ADAPTER, LoadRequest
from .tokens import Prepared
from .training import Calls

MEMORY_PARTS = ("process", "weights", "gradients", "optimiser", "activations")
"""What an estimate of peak memory is split into; `process` is Python with its libraries before any weight."""

Purpose = Literal["train", "infer", "open"]


@dataclass(frozen=True)
class PlannedPlugin:
    """One plugin of the plan. `why` is `named` or `default`, `key` where the recipe names it.

    `stage` is the index of the stage that alone uses it, None where the whole run does.
    """

    name: str
    plugin: Any
    distribution: str
    version: str
    why: str
    key: str
    stage: int | None = None


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One hook call to come: the phase it belongs to, the hook, the plugin that answers, and why that one."""

    phase: str
    hook: str
    plugin: str
    why: str


@dataclass(frozen=True)
class StagePlan:
    """One stage: its name in the recipe, the plugin that trains it, its data, and the plugins only it uses.

    `adapter` is the name of the adapter it trains, `start` the folder of a trained one that it begins with.
    """

    index: int
    name: str
    key: str
    plugin: PlannedPlugin
    sources: tuple[Source, ...]
    mixing: Mixing = field(default_factory=Mixing)
    uses: tuple[PlannedPlugin, ...] = ()
    adapter: str = DEFAULT_ADAPTER
    start: Path | None = None


@dataclass(frozen=True)
class Start:
    """A saved adapter that a stage begins with: its folder, and where the recipe names it."""

    folder: Path
    key: str


@dataclass(frozen=True)
class ExportPlan:
    """One export at the end of a run: its name, which no other of the run has, and the plugin that makes it.

    `adapter` names the adapter whose model it is; None: the one that the run is about.
    """

    name: str
    key: str
    plugin: PlannedPlugin
    adapter: str | None = None


@dataclass(frozen=True)
class DataEstimate:
    """What a stage's data looks like, from a sample of `sampled` of `rows` rows (None: not counted).

    `tokens` are real tokens in the sample, `padding` the share that padding would add to a padded batch, `supervised`
    the share of tokens with a loss, `too_long` how many sampled sequences exceed the limit, `left_out` how many
    sampled rows cannot be trained on or were dropped. `packing` is the share of the places in packed bins that hold a
    token, None where nothing is packed.
    """

    stage: str
    sampled: int
    rows: int | None
    tokens: int
    padding: float
    supervised: float
    too_long: int
    longest: int
    steps: int
    left_out: int = 0
    packing: float | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """What trains in places that are alike: `name` with numbers of layers as `*`, and the dtype it is stored in.

    `tensors` are how many there are, `parameters` how many numbers they hold in all.
    """

    name: str
    tensors: int
    parameters: int
    dtype: str


@dataclass(frozen=True)
class Estimate:
    """Parameter counts and peak memory in bytes, by part, before anything is loaded.

    `skeleton` is the model on the meta device (shapes, no values), already with its adapter, for plugins further down
    the chain; `tokenizer` is the real one. Both are dropped from what is shown and recorded. `choices` are what plugins
    have chosen from the estimate for a stage, plain data by the stage's key: the stage finds them in its context.
    `trained` is what trains, part by part, for each stage by its title. `at_once` says how many of the trainable
    parameters have a gradient at the same time; 0: all.
    """

    parameters: int = 0
    trainable: int = 0
    memory: Mapping[str, int] = field(default_factory=dict)
    data: tuple[DataEstimate, ...] = ()
    notes: tuple[str, ...] = ()
    choices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    trained: Mapping[str, tuple[Trained, ...]] = field(default_factory=dict)
    skeleton: Any = None
    tokenizer: Any = None
    at_once: int = 0

    @property
    def peak_bytes(self) -> int:
        """The sum of all parts."""
        return sum(self.memory.values())

    def with_memory(self, **parts: int) -> dict[str, int]:
        """Return the memory parts with these set, for `dataclasses.replace(estimate, memory=...)`."""
        unknown = set(parts) - set(MEMORY_PARTS)
        assert not unknown, f"memory has no part named {unknown}"
        return {**self.memory, **parts}


def final_of(names: Sequence[str]) -> str:
    """Of the adapters that the stages of a run train, the one that it is about: the default one, else the last."""
    return names[-1] if names and DEFAULT_ADAPTER not in names else DEFAULT_ADAPTER


@dataclass(frozen=True)
class Plan:
    """Everything a run needs to know, worked out from the recipe, the installed plugins and the machine alone.

    `purpose` is what it is made for: to train, to answer with a model as it is, or to open a run that has trained.
    """

    recipe: Any
    machine: Machine
    precision: Precision
    plugins: tuple[PlannedPlugin, ...]
    steps: tuple[PlanStep, ...]
    stages: tuple[StagePlan, ...]
    owners: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    estimate: Estimate | None = None
    notes: tuple[str, ...] = ()
    exports: tuple[ExportPlan, ...] = ()
    purpose: Purpose = "train"

    @property
    def load_request(self) -> LoadRequest:
        """The request that `tunekit_quantize` and `tunekit_before_load` start from."""
        hook = "tunekit_load_model"
        loaders = (each for each in self.plugins if self.owners.get(hook, each.name) == each.name)
        loader = next((each.plugin for each in loaders if hasattr(each.plugin, hook)), None)
        revision, dense = _revision(loader), getattr(loader, "dense", ())
        return LoadRequest(model=self.recipe.model, precision=self.precision, revision=revision, dense=dense)

    def plugin(self, name: str) -> PlannedPlugin | None:
        """The planned plugin of this name, or None."""
        return next((planned for planned in self.plugins if planned.name == name), None)

    def stages_with(self, plugin: Any) -> tuple[StagePlan, ...]:
        """The stages in which this plugin object acts: all, or the one that names it."""
        scopes = {planned.stage for planned in self.plugins if planned.plugin is plugin}
        return tuple(stage for stage in self.stages if None in scopes or stage.index in scopes)

    def title(self, index: int) -> str:
        """The name of a stage, with its number from 1 where several have that name: `sft`, or `sft-2`."""
        name = self.stages[index].name
        return name if [stage.name for stage in self.stages].count(name) == 1 else f"{name}-{index + 1}"

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that the stages train, in the order of their first stage."""
        return tuple(dict.fromkeys(stage.adapter for stage in self.stages))

    @property
    def final_adapter(self) -> str:
        """The adapter that the run is about: the default one, else the one trained last."""
        return final_of(self.adapters)

    def provides(self, capability: str) -> bool:
        """Whether any planned plugin provides this capability."""
        return any(capability in planned.plugin.provides for planned in self.plugins)

    def __rich__(self) -> Any:
        from ..display import plan_sections, terminal

        return terminal(plan_sections(self))

    def _repr_html_(self) -> str:
        from ..display import html, plan_sections

        return html(plan_sections(self))


@dataclass(frozen=True)
class EstimateRequest:
    """What an estimate is made for: the plan, how the model would be loaded, and prepared samples by stage index.

    `rows` are the rows of a stage's data by stage index, where they were counted. `stage` is the stage it is made for,
    None where the plan has none.

    `calls` lets a plugin call the hooks it publishes, so that an estimate sees what the run will see.
    """

    plan: Plan
    load: LoadRequest
    samples: Mapping[int, Prepared] = field(default_factory=dict)
    rows: Mapping[int, int] = field(default_factory=dict)
    calls: Calls | None = None
    stage: StagePlan | None = None

    @property
    def started(self) -> Start | None:
        """The saved adapter that this stage trains on, as it is or as earlier ones left it; None: a fresh one."""
        adapter = None if self.stage is None else self.stage.adapter
        of_stages = ((each.start, each.key) for each in self.plan.stages if each.adapter == adapter)
        return next((Start(start, f"{key}.adapter.start") for start, key in of_stages if start is not None), None)


def _revision(loader: Any) -> str | None:
    """The option of a loader by that name, where it has one."""
    return getattr(getattr(loader, "config", None), "revision", None)
