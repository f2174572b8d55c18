"""The surroundings of a hook call without a run: machines, plans, contexts and calls around any plugins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from ..calls import Calls, implements
from ..catalog import PLUGINS, Catalog
from ..defaults import DEFAULTS
from ..errors import PlanError
from ..plan.ordering import incompatibilities, order, steps
from ..plugin import Plugin
from ..recipe import Recipe
from ..recipe.building import plugin_name
from ..values import (
    Accelerator,
    Context,
    Estimate,
    EstimateRequest,
    Event,
    LoadRequest,
    Machine,
    Plan,
    PlannedPlugin,
    Precision,
    Prepared,
    StageContext,
    StagePlan,
)
from .tiny import FP32, tiny_config, tiny_tokenizer


@cache
def installed(group: str = PLUGINS) -> Catalog:
    """What is installed, looked up once per process."""
    return Catalog.discover(group=group)


def fake_machine(
    *accelerators: Accelerator, cpu_features: Sequence[str] = (), memory_bytes: int = 16 << 30, cores: int = 2
) -> Machine:
    """A machine that is not there: a plain CPU unless accelerators or CPU features are named."""
    return Machine("Linux x86_64", "3.11", "a test", cores, memory_bytes, frozenset(cpu_features), accelerators)


def planned(*plugins: Plugin[Any]) -> tuple[PlannedPlugin, ...]:
    """Plugin objects as a plan holds them, under the names they are installed by."""
    return tuple(_planned(plugin) for plugin in plugins)


def calls_of(*plugins: Plugin[Any]) -> Calls:
    """Hook calls over these plugins, in the order given."""
    return Calls(planned(*plugins))


def default_plugin(hook: str, **options: Any) -> Plugin[Any]:
    """Make the plugin that answers a hook by default, from what is installed; UnknownPluginError where none is."""
    return installed().load(DEFAULTS[hook][0])(**options)


def plan_for(
    *plugins: Plugin[Any], machine: Machine | None = None, precision: Precision = FP32, model: str = "tiny"
) -> Plan:
    """Plan these plugins and no defaults, each stage plugin as a stage; PlanError where they do not fit together."""
    every = planned(*plugins)
    stages = [plugin for plugin in every if implements(plugin.plugin, "tunekit_train_stage")]
    others = [plugin for plugin in every if plugin not in stages]
    staged = [StagePlan(index, plugin.name, plugin.key, plugin, ()) for index, plugin in enumerate(stages)]
    ordered, problems = order(every)
    problems = [*problems, *incompatibilities(others, staged, installed())]
    if problems:
        raise PlanError(problems)
    return Plan(
        Recipe(model), machine or fake_machine(), precision, tuple(ordered), tuple(steps(ordered, staged)),
        tuple(staged),
    )  # fmt: skip


def estimate_for(
    *plugins: Plugin[Any],
    precision: Precision = FP32,
    samples: Mapping[int, Prepared] | None = None,
    start: Path | None = None,
    **config: Any,
) -> Estimate:
    """Estimate the tiny model with these plugins; the loader's part is filled in, its skeleton is kept.

    `start` is the folder of an adapter that a stage begins with. `config` overrides fields of the tiny model's config.
    """
    import torch
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        skeleton = LlamaForCausalLM(tiny_config(**config)).to(getattr(torch, precision.weights))
    count = sum(parameter.numel() for parameter in skeleton.parameters())
    weights = sum(parameter.numel() * parameter.element_size() for parameter in skeleton.parameters())
    loaded = Estimate(count, count, {"weights": weights}, skeleton=skeleton, tokenizer=tiny_tokenizer())
    plan = plan_for(*plugins, precision=precision)
    if start is not None:
        plan = replace(plan, stages=(StagePlan(0, "stage", "stages.0.stage", plan.plugins[-1], (), start=start),))
    calls, stage = Calls(plan.plugins), next(iter(plan.stages), None)
    request = EstimateRequest(plan, LoadRequest("tiny", precision), samples or {}, calls=calls, stage=stage)
    estimate: Estimate = calls.chain("tunekit_estimate", "estimate", loaded, request=request)
    return estimate


def run_context(
    *plugins: Plugin[Any],
    folder: str | Path = ".",
    seed: int = 0,
    precision: Precision = FP32,
    machine: Machine | None = None,
    watch: Callable[[Event], None] = lambda event: None,
    data: Prepared | None = None,
) -> Context:
    """The context of a run with these plugins; `watch` sees every event, `data` is what a fresh adapter will learn."""
    return Context(calls_of(*plugins), machine or fake_machine(), precision, Path(folder), seed, watch,
                   data=None if data is None else lambda: data)  # fmt: skip


def stage_context(
    *plugins: Plugin[Any],
    folder: str | Path,
    seed: int = 0,
    precision: Precision = FP32,
    machine: Machine | None = None,
    watch: Callable[[Event], None] = lambda event: None,
    name: str = "stage",
    resume: bool = False,
) -> StageContext:
    """The context of one stage of a run with these plugins; `folder` is the stage's own and is made."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    return StageContext(
        calls=calls_of(*plugins),
        machine=machine or fake_machine(),
        precision=precision,
        folder=Path(folder),
        seed=seed,
        emit=watch,
        name=name,
        key=f"stages.0.{name}",
        resume=resume,
    )


def _planned(plugin: Plugin[Any]) -> PlannedPlugin:
    name, entry = plugin_name(plugin, installed()), installed().entry_of(type(plugin))
    distribution, version = (entry.distribution, entry.version) if entry else (type(plugin).__module__, "local")
    return PlannedPlugin(name, plugin, distribution, version, "named", f"use.{name}")
