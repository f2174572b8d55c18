"""What PPO will cost: its prompts with the longest answers there can be, and the steps on them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from tunekit.values import Estimate, EstimateRequest, Item, TokenSequence
from tunekit_train import Items, estimate_stage

from .options import PpoConfig


def steps_of(config: PpoConfig, prompts: int) -> int:
    """Optimiser steps of a stage on so many prompts."""
    rollouts = math.ceil(config.epochs * prompts / config.rollout.prompts)
    return rollouts * steps_between(config)


def steps_between(config: PpoConfig) -> int:
    """Optimiser steps on the answers of one rollout."""
    return config.rollout.epochs * config.rollout.prompts // (config.batch.rows * config.batch.accumulation)


def estimate_ppo(plugin: Any, request: EstimateRequest, estimate: Estimate) -> Estimate:
    """Add data and memory."""
    config: PpoConfig = plugin.config
    stage = next(stage for stage in request.plan.stages if stage.plugin.plugin is plugin)
    prepared = request.samples.get(stage.index)
    if prepared is None or not (items := list(prepared)):
        return estimate
    answered = Items([_answered(item, config.rollout.max_new_tokens) for item in items], prepared.account)
    samples = {**request.samples, stage.index: answered}
    found = estimate_stage(plugin, config, replace(request, samples=samples), estimate)
    *before, data = found.data
    count = request.rows.get(stage.index) or len(items)
    training = count - (max(1, round(config.evaluate.share * count)) if config.evaluate.share else 0)
    return replace(found, data=(*before, replace(data, steps=config.steps or steps_of(config, training))))


def _answered(item: Item, most: int) -> Item:
    (prompt,) = item.sequences
    ids = np.concatenate([np.asarray(prompt.ids), np.zeros(most, np.int64)]).tolist()
    weights = [0.0] * len(prompt.ids) + [1.0] * most
    return Item((TokenSequence(ids, weights, prompt.row, prompt.where, prompt.cut),))
