"""What a stage will cost, were all answers as long as they may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tunekit.values import BYTES, Account, DataEstimate, Estimate, EstimateRequest, Item, StagePlan, TokenSequence
from tunekit_train.estimate import Sample

from .options import GrpoConfig, RlooConfig


def estimate_online(plugin: Any, request: EstimateRequest, estimate: Estimate) -> Estimate:
    """Add the data, the gradients and the activations of the stage that `plugin` trains, and its reference model.

    Where several stages train, memory is that of the hungriest.
    """
    stage = next(stage for stage in request.plan.stages if stage.plugin.plugin is plugin)
    prepared = request.samples.get(stage.index)
    if prepared is None or not (prompts := list(prepared)):
        return estimate
    config: GrpoConfig | RlooConfig = plugin.config
    padded = config.model_copy(update={"batch": config.batch.model_copy(update={"padding": "always"})})
    answers = [answer for prompt in prompts for answer in [answered(prompt, config)] * config.num_generations]
    seed, rows = request.plan.recipe.seed, request.rows.get(stage.index)
    sample = Sample(answers * config.num_iterations, padded, rows, seed, prepared.account.rows)
    memory = {"gradients": BYTES[request.plan.precision.trainable] * (estimate.at_once or estimate.trainable)}
    if estimate.skeleton is not None:
        from tunekit_train.shapes import activation_bytes

        memory["activations"] = activation_bytes(estimate.skeleton, request.plan.precision, padded, sample.largest)
    grown = {name: max(size, estimate.memory.get(name, 0)) for name, size in memory.items()}
    data = (*estimate.data, _described(stage, prepared.account, prompts, sample))
    notes = (*estimate.notes, *_notes(plugin, stage, estimate))
    return replace(estimate, memory=estimate.with_memory(**grown), data=data, notes=notes)


def answered(prompt: Item, config: GrpoConfig | RlooConfig) -> Item:
    """A prompt with the longest answer there may be."""
    (sequence,) = prompt.sequences
    ids = [*sequence.ids, *[0] * config.max_completion_length]
    weights = [*sequence.weights, *[1.0] * config.max_completion_length]
    return Item((TokenSequence(ids, weights, sequence.row, sequence.where),))


def _described(stage: StagePlan, account: Account, prompts: Sequence[Item], sample: Sample) -> DataEstimate:
    """The prompts as they are, and the steps that their answers make."""
    whole = sample.describe(stage, account)
    return replace(
        whole,
        tokens=sum(prompt.tokens for prompt in prompts),
        supervised=0.0,
        too_long=sum(source.dropped.count for source in account.sources.values()),
        longest=max(prompt.tokens for prompt in prompts),
    )


def _notes(plugin: Any, stage: StagePlan, estimate: Estimate) -> list[str]:
    """What the sum of memory does not hold."""
    config: GrpoConfig | RlooConfig = plugin.config
    if not config.beta or hasattr(estimate.skeleton, "peft_config"):
        return []
    return [f"{stage.key}: beta keeps a second copy of the model, which the estimate does not count"]
