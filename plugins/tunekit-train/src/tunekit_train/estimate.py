"""What a stage will cost: tokens and padding from sampled rows, memory from shapes. No weight is ever loaded."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from tunekit.errors import PlanError, Problem
from tunekit.values import BYTES, Account, DataEstimate, Estimate, EstimateRequest, Item, Plan, StagePlan

from .budget import Sizes, fill
from .config import TrainConfig
from .fitting import Fitting, as_options_say, choose, chunking_obstacle, without_chunks
from .items import Indices, Items
from .objective import Need
from .packing import Bins, pack
from .permuting import permutation
from .stage import Stage
from .tricks import obstacle_of


def adamw_estimate(request: EstimateRequest, estimate: Estimate) -> Estimate:
    """Add two moments for each trainable parameter."""
    width = BYTES[request.plan.precision.trainable]
    return replace(estimate, memory=estimate.with_memory(optimiser=2 * width * estimate.trainable))


def states_estimate(estimate: Estimate, bytes_of: Callable[[Any], float]) -> Estimate:
    """Add what an optimiser keeps: `bytes_of` says how much for each parameter of the skeleton that trains."""
    assert estimate.skeleton is not None, "the loader's estimate comes before the optimiser's"
    trained = (parameter for parameter in estimate.skeleton.parameters() if parameter.requires_grad)
    return replace(estimate, memory=estimate.with_memory(optimiser=math.ceil(sum(map(bytes_of, trained)))))


def estimate_stage(plugin: Any, config: TrainConfig, request: EstimateRequest, estimate: Estimate) -> Estimate:
    """Add the data, the gradients and the activations of the stage that `plugin` trains.

    Where several stages train, memory is that of the hungriest.
    """
    stage = next(stage for stage in request.plan.stages if stage.plugin.plugin is plugin)
    prepared = request.samples.get(stage.index)
    if prepared is None or not (items := list(prepared)):
        return estimate
    _refuse_packing(config, stage, estimate.skeleton)
    _refuse_unknown_tokens(items, stage, estimate.skeleton)
    padded = _is_padded(config, estimate.skeleton)
    rows, seed = request.rows.get(stage.index), request.plan.recipe.seed
    sample = Sample(items, config, rows, seed, prepared.account.rows, padded)
    largest = sample.largest
    memory = {"gradients": BYTES[request.plan.precision.trainable] * (estimate.at_once or estimate.trainable)}
    choices = dict(estimate.choices)
    if estimate.skeleton is not None:
        from .shapes import activations

        needs = plugin.objective().needs if isinstance(plugin, Stage) else None
        parts = activations(estimate.skeleton, request.plan.precision, config, largest)
        if needs and all(type(need).hidden_at is not Need.hidden_at for need in needs):
            parts = replace(parts, logits=0, chunked=0)
        rest = sum({**estimate.memory, "activations": 0, **memory}.values())
        fitting = _chosen(config, stage, request.plan, needs, lambda fitting: rest + parts.bytes(fitting))
        memory["activations"] = parts.bytes(fitting)
        choices[stage.key] = {"fitting": fitting.state()}
    grown = {name: max(size, estimate.memory.get(name, 0)) for name, size in memory.items()}
    data = (*estimate.data, sample.describe(stage, prepared.account))
    notes = (*estimate.notes, *_notes(plugin, config, stage))
    return replace(estimate, memory=estimate.with_memory(**grown), data=data, notes=notes, choices=choices)


def _chosen(
    config: TrainConfig,
    stage: StagePlan,
    plan: Plan,
    needs: Iterable[Need[Any]] | None,
    peak: Callable[[Fitting], int],
) -> Fitting:
    """What is done so that a micro-batch fits. PlanError for a head in parts that these needs would not let be."""
    unchunked = obstacle_of(plan, "chunked_head") or (None if needs is None else chunking_obstacle(needs))
    without_chunks(as_options_say(config.compute), config.compute, stage.key, unchunked)
    return choose(config.compute, plan.machine, peak, unchunked)


def _notes(plugin: Any, config: TrainConfig, stage: StagePlan) -> Iterator[str]:
    """What is worth knowing before the stage begins."""
    batch, accumulation = config.batch, config.batch.accumulation
    size, unit = (batch.tokens, " tokens") if batch.tokens else (batch.rows, "")
    if accumulation > 1 and isinstance(plugin, Stage) and plugin.objective().couples_batch:
        yield (
            f"{stage.key}: the loss couples the items of a batch, so {accumulation} micro-batches of {size} are not "
            f"one batch of {size * accumulation}{unit}"
        )


def _is_padded(config: TrainConfig, skeleton: Any) -> bool:
    """Whether the batches will be padded."""
    if config.batch.padding == "always" or skeleton is None:
        return config.batch.padding == "always"
    from .forward import segments_obstacle

    return segments_obstacle(skeleton) is not None


def _refuse_packing(config: TrainConfig, stage: StagePlan, skeleton: Any) -> None:
    """Raise PlanError where examples are to be packed and the model cannot do without padding."""
    from .checks import unpacked
    from .forward import segments_obstacle

    packing = config.batch.packing
    if packing != "none" and skeleton is not None and (obstacle := segments_obstacle(skeleton)):
        raise PlanError([unpacked(f"{stage.key}.batch.packing", packing, obstacle)])


def _refuse_unknown_tokens(items: Sequence[Item], stage: StagePlan, skeleton: Any) -> None:
    """Raise PlanError where the data holds tokens for which the model has no row."""
    if skeleton is None:
        return
    rows = skeleton.get_input_embeddings().weight.shape[0]
    largest = max(int(np.max(sequence.ids)) for item in items for sequence in item.sequences if len(sequence.ids))
    if largest >= rows:
        what = f"holds token {largest}, and the embedding of the model has {rows} rows"
        remedy = "add `vocabulary: {}` to use, which gives every token of the tokenizer a row"
        raise PlanError([Problem(f"{stage.key}.data", what, remedy)])


@dataclass(frozen=True)
class Sample:
    """Items of `sampled` rows, out of `rows` in all, and what can be told from them about all the data."""

    items: Sequence[Item]
    config: TrainConfig
    rows: int | None
    seed: int
    sampled: int = 0
    padded: bool = False

    @cached_property
    def lengths(self) -> Indices:
        """Tokens of each item."""
        return Items(self.items).lengths

    @cached_property
    def bins(self) -> Bins:
        """Which items lie together."""
        batch = self.config.batch
        return pack(self.lengths, batch.packing, batch.max_length, self.seed)

    @cached_property
    def sizes(self) -> Sizes:
        """The room that each item takes."""
        return Sizes.of(self.items, self.padded)

    @cached_property
    def per_batch(self) -> float:
        """Items, or bins of packed ones, in a micro-batch on average."""
        budget = self.config.batch.tokens
        if not budget:
            return self.config.batch.rows
        number = len(self.items)
        return number / (len(fill(self.sizes, permutation(number, f"{self.seed} estimate"), budget)) - 1)

    @property
    def packing(self) -> float | None:
        """Tokens per place in the bins; None where nothing is packed."""
        batch = self.config.batch
        return None if batch.packing == "none" else self.bins.efficiency(self.lengths, batch.max_length)

    @property
    def count(self) -> int:
        """Items in all: some rows become none, or several."""
        rows = self.rows or self.sampled
        return max(1, round(rows * len(self.items) / self.sampled)) if self.sampled else rows or len(self.items)

    @property
    def steps(self) -> int:
        """Optimiser steps of the stage."""
        if self.config.steps:
            return self.config.steps
        count, share, batch = self.count, self.config.evaluate.share, self.config.batch
        training = count - (min(max(1, round(share * count)), count - 1) if share else 0)
        bins = math.ceil(training * len(self.bins) / len(self.items))
        per_epoch = math.ceil(math.ceil(bins / self.per_batch) / batch.accumulation)
        return math.ceil(self.config.epochs * per_epoch)

    @property
    def batches(self) -> list[list[Item]]:
        """As many micro-batches as will be trained on, up to 2000, drawn from the sample at random."""
        dice, count = random.Random(self.seed), min(2000, self.steps * self.config.batch.accumulation)
        if budget := self.config.batch.tokens:
            drawn = np.array(dice.choices(range(len(self.items)), k=math.ceil(count * self.per_batch)))
            borders = fill(self.sizes, drawn, budget).tolist()
            pairs = itertools.pairwise(borders)
            return [[self.items[at] for at in drawn[start:end].tolist()] for start, end in pairs]
        bins = [[self.items[item] for item in self.bins[number]] for number in range(len(self.bins))]
        rows = min(self.config.batch.rows, self.rows or len(bins))
        return [[item for each in dice.choices(bins, k=rows) for item in each] for _ in range(count)]

    @property
    def largest(self) -> list[Item]:
        """The micro-batch with the most tokens: the one that sets the peak."""
        return max(self.batches, key=lambda batch: sum(item.tokens for item in batch))

    def describe(self, stage: StagePlan, account: Account) -> DataEstimate:
        """The data as the plan shows it."""
        sequences = [sequence for item in self.items for sequence in item.sequences]
        tokens = sum(len(sequence.ids) for sequence in sequences)
        supervised = sum(1 for sequence in sequences for weight in sequence.weights if weight)
        return DataEstimate(
            stage=stage.name,
            sampled=account.rows,
            rows=self.rows,
            tokens=tokens,
            padding=padding_share(self.batches),
            supervised=supervised / tokens,
            too_long=sum(1 for sequence in sequences if sequence.cut),
            longest=max(len(sequence.ids) + sequence.cut for sequence in sequences),
            steps=self.steps,
            left_out=account.rows - account.kept,
            packing=self.packing,
        )


def padding_share(batches: Sequence[Sequence[Item]]) -> float:
    """The share of positions that would be padding, were each batch padded to its longest sequence."""
    real, padded = 0, 0
    for batch in batches:
        lengths = [len(sequence.ids) for item in batch for sequence in item.sequences]
        real += sum(lengths)
        padded += max(lengths) * len(lengths)
    return 1 - real / padded
