"""Options of a stage that cannot work together, found at plan time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunekit.calls import implements
from tunekit.errors import Problem
from tunekit.values import Kind, Machine, Mixing, Plan, StagePlan

from .config import BatchConfig, TrainConfig
from .fitting import offload_problem
from .schedules import schedule_problems
from .selecting import selection_problems
from .trackers import tracker_problems

ONE_CARD = (
    "show it one: CUDA_VISIBLE_DEVICES=0; or name `ddp` in use, which trains in all of them what several processes can"
)
"""What to do where one process sees several GPUs."""


def problems(plugin: Any, plan: Plan, machine: Machine | None = None) -> Iterator[Problem]:
    """What cannot be done with each other, or with the way the stage's data is read."""
    for stage in plan.stages:
        if stage.plugin.plugin is plugin:
            if stage.mixing.streaming:
                yield from streaming_problems(plugin.config, stage.key)
            yield from _order(plugin.config.batch, stage.mixing, f"{stage.key}.batch")
            yield from _length(plugin.config.batch, plugin.kinds, f"{stage.key}.batch")
            yield from _budget(plugin.config.batch, f"{stage.key}.batch")
            if machine is not None:
                yield from offload_problem(plugin.config.compute, machine, f"{stage.key}.compute")
                yield from several_cards(plan, machine, stage.key)
            yield from _plateau(plugin.config, plan, stage)
            yield from _written_out(plugin.config.batch, plan, stage)
            yield from option_problems(plugin.config, stage.key)


def several_cards(plan: Plan, machine: Machine, key: str) -> Iterator[Problem]:
    """transformers trains in all cards that one process sees, in a way (DataParallel) that this engine does not know.

    Of AMD's cards only the training itself can tell how many are seen.
    """
    seen = [each for each in machine.accelerators if each.kind == plan.precision.device == "cuda"]
    count = sum(each.vendor == "nvidia" for each in seen)
    if count > 1 and not any(implements(each.plugin, "tunekit_launch") for each in plan.plugins):
        yield Problem(key, f"would train in one process, which sees {count} GPUs", ONE_CARD)


def _plateau(config: TrainConfig, plan: Plan, stage: StagePlan) -> Iterator[Problem]:
    """A rate that waits for evaluations is no function of the step, which a plugin could change."""
    hook = "tunekit_train_schedule"
    if config.schedule.shape != "reduce_lr_on_plateau":
        return
    for planned in plan.plugins:
        if planned.stage in (None, stage.index) and implements(planned.plugin, hook):
            what = f"is reduce_lr_on_plateau, which goes by evaluations, and {planned.name} changes what goes by steps"
            remedy = f"choose another shape, or leave {planned.name} out"
            yield Problem(f"{stage.key}.schedule.shape", what, remedy)


def _written_out(batch: BatchConfig, plan: Plan, stage: StagePlan) -> Iterator[Problem]:
    """Sequences laid end to end have an attention of their own, whatever the loader was asked for."""
    loader = plan.plugin("transformers")
    eager = loader is not None and getattr(loader.plugin.config, "attention", "auto") == "eager"
    if loader is not None and eager and batch.padding != "always" and not plan.provides("attention.chosen"):
        what = f"is eager, and {stage.name} lays sequences end to end, which another attention computes"
        remedy = f"name `attention: {{kind: eager}}` in use instead, or set {stage.key}.batch.padding to always"
        yield Problem(f"{loader.key}.attention", what, remedy)


def option_problems(config: TrainConfig, key: str) -> Iterator[Problem]:
    """What is wrong with the options whatever the data is."""
    yield from schedule_problems(config, key)
    yield from selection_problems(config, key)
    yield from tracker_problems(config.log.trackers, key)
    if "compile_backend" in config.compute.model_fields_set and not config.compute.compile:
        where = f"{key}.compute.compile_backend"
        yield Problem(where, "is set, and nothing is compiled", "set compute.compile, or leave it out")


def streaming_problems(config: TrainConfig, key: str) -> Iterator[Problem]:
    """Streamed data has no known length."""
    if config.steps is None:
        yield Problem(f"{key}.steps", "is not set, and streamed data has no known length", "set it")
    if config.evaluate.share:
        what = "needs to know all rows, and the data is streamed"
        yield Problem(f"{key}.evaluate.share", what, "set it to 0, or stream nothing")
    if config.batch.by_length:
        what = "sorts all rows, and the data is streamed"
        yield Problem(f"{key}.batch.by_length", what, "leave it out, or stream nothing")
    if config.batch.packing == "best_fit":
        what = "is best_fit, which sorts all rows, and the data is streamed"
        yield Problem(f"{key}.batch.packing", what, "use greedy, or stream nothing")


def uneven(config: TrainConfig, processes: int, key: str) -> Iterator[Problem]:
    """A step's micro-batches are shared out among the processes, so that they are the same in any number of them."""
    accumulation = config.batch.accumulation
    if accumulation % processes:
        where, more = f"{key}.batch.accumulation", -(-accumulation // processes) * processes
        what = f"is {accumulation}, and {processes} processes share out the micro-batches of a step"
        yield Problem(where, what, f"set it to a multiple of {processes}, such as {more}; they are as many in all")


def _order(batch: BatchConfig, mixing: Mixing, key: str) -> Iterator[Problem]:
    """Each of these wants the rows in an order of its own, or a layout of its own."""
    kept = not mixing.shuffle and not mixing.streaming
    if batch.by_length and kept:
        what = "puts rows of similar length together, and data.shuffle: false keeps their order"
        yield Problem(f"{key}.by_length", what, "leave one of the two out")
    if batch.packing == "best_fit" and kept:
        what = "is best_fit, which sorts the rows, and data.shuffle: false keeps their order"
        yield Problem(f"{key}.packing", what, "use greedy, or shuffle")
    if batch.packing != "none" and batch.by_length:
        what = f"is {batch.packing}, which fills every bin, and by_length would have nothing left to do"
        yield Problem(f"{key}.packing", what, "leave one of the two out")
    if batch.packing != "none" and batch.padding == "always":
        yield unpacked(f"{key}.packing", batch.packing, "batch.padding is always")


def _length(batch: BatchConfig, kinds: frozenset[Kind], key: str) -> Iterator[Problem]:
    """An answer that is preferred or judged is judged as a whole."""
    if batch.too_long == "split" and kinds.isdisjoint({"conversation", "text"}):
        what = "is split, and answers that are preferred or judged are judged as a whole"
        yield Problem(f"{key}.too_long", what, "use cut or drop")


def _budget(batch: BatchConfig, key: str) -> Iterator[Problem]:
    """A budget of tokens is another measure of what rows and bins measure."""
    if batch.tokens is None:
        return
    if "rows" in batch.model_fields_set:
        what = f"is {batch.rows}, and batch.tokens says already how much a micro-batch holds"
        yield Problem(f"{key}.rows", what, "leave one of the two out")
    if batch.packing != "none":
        what = f"is {batch.packing}, which makes bins of max_length tokens, and batch.tokens wants micro-batches of "
        yield Problem(f"{key}.packing", f"{what}{batch.tokens}", "leave one of the two out")
    elif batch.tokens < batch.max_length:
        what = f"is {batch.tokens}, and one sequence may have {batch.max_length} (batch.max_length)"
        yield Problem(f"{key}.tokens", what, "raise it, or lower batch.max_length")


def unpacked(where: str, packing: str, reason: str) -> Problem:
    """The problem of packing for a model whose batches are padded."""
    return Problem(where, f"is {packing}, but the batches are padded: {reason}", "use packing: none")
