"""Options of PPO that cannot be, found at plan time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunekit.calls import implements
from tunekit.errors import Problem
from tunekit.plan import other_base
from tunekit.values import Plan, StagePlan
from tunekit_lora.stacking import other_below

from .control import LARGEST
from .idle import idle_problems
from .options import PpoConfig


def problems(plugin: Any, plan: Plan) -> Iterator[Problem]:
    """What is missing, and what contradicts what."""
    for stage in plan.stages:
        if stage.plugin.plugin is plugin:
            yield from _surroundings(plugin.config, plan, stage)
            yield from _sizes(plugin.config, stage.key)
            yield from idle_problems(plugin.config, stage.key)
            yield from _control(plugin.config, stage.key)


def _surroundings(config: PpoConfig, plan: Plan, stage: StagePlan) -> Iterator[Problem]:
    """Rewards, the reference, the way data is read, and processes."""
    seen = [planned for planned in plan.plugins if planned.stage in (None, stage.index)]
    named = (config.reward.adapter, config.reward.model, config.reward.url)
    if not any(named) and not any(implements(planned.plugin, "tunekit_reward") for planned in seen):
        remedy = "name a plugin that values answers in `use:`, or set reward.adapter, reward.model or reward.url"
        yield Problem(stage.key, "nothing says what an answer is worth", remedy)
    if stage.mixing.streaming:
        yield Problem(stage.key, "learns from prompts that it can come back to, and the data is streamed",
                      "stream nothing")  # fmt: skip
    adapted = any("adapter" in planned.plugin.provides for planned in seen)
    if not adapted and config.reference != "copied":
        what = f"is {config.reference}, and without an adapter the policy at the start is a second copy of all weights"
        yield Problem(f"{stage.key}.reference", what, "train an adapter (`use: {lora: {}}`), or set it to copied")
    if not adapted and config.reward.adapter is not None:
        what = "needs the base as it was trained on, and here the base's own weights train"
        remedy = "train the policy as an adapter (`use: {lora: {}}`), or name a full model in reward.model"
        yield Problem(f"{stage.key}.reward.adapter", what, remedy)
    if adapted and config.reward.adapter is not None:
        yield from _reward_adapter(config.reward.adapter, plan, stage)
    if config.reward.adapter is not None and any("adapter.pissa" in planned.plugin.provides for planned in seen):
        what = "was trained on the base as it was loaded, and PiSSA changes the base"
        yield Problem(f"{stage.key}.reward.adapter", what, "use lora alone, or name a full model in reward.model")
    if plan.provides("processes"):
        what = "gathers its answers in one process, and the run is carried out by several"
        yield Problem(stage.key, what, "train it in a run of its own, in one process")


def _reward_adapter(name: str, plan: Plan, stage: StagePlan) -> Iterator[Problem]:
    """It is there, or an earlier stage will leave it, and it is not the policy itself."""
    where = f"{stage.key}.reward.adapter"
    earlier = list(dict.fromkeys(each.adapter for each in plan.stages if each.index < stage.index))
    if name == stage.adapter and name in earlier:
        what = f"is {name}, on which this stage goes on as the policy"
        yield Problem(where, what, "give the `reward` stage an adapter of its own: `adapter: reward`")
    elif name not in earlier and not (Path(name) / "adapter_config.json").is_file():
        known = ", ".join(earlier) or "none"
        what = f"is {name!r}, which is neither the adapter of an earlier stage ({known}) nor a folder with one"
        yield Problem(where, what, "name the adapter of a `reward` stage, or the folder that it left")
    elif name not in earlier:
        yield from _other_base(Path(name), plan, where)


def _other_base(folder: Path, plan: Plan, where: str) -> Iterator[Problem]:
    """A reward adapter of another run that was trained on another base than the policy's."""
    if (other := other_base(folder, plan.plugins, where)) is not None:
        yield other
    if (wrong := other_below(folder, plan)) is not None:
        yield Problem(where, f"{folder} {wrong[0]}", wrong[1])


def _sizes(config: PpoConfig, key: str) -> Iterator[Problem]:
    """What has to divide, and what has to fit."""
    batch, rollout = config.batch, config.rollout
    step = batch.rows * batch.accumulation
    if rollout.prompts % step:
        what = f"is {rollout.prompts}, which is no multiple of the {step} answers of a step"
        remedy = f"set it to {step * max(1, round(rollout.prompts / step))}, or change batch.rows or batch.accumulation"
        yield Problem(f"{key}.rollout.prompts", what, remedy)
    if rollout.max_new_tokens >= batch.max_length:
        what = (
            f"is {rollout.max_new_tokens}, and batch.max_length leaves {batch.max_length} tokens for prompt and answer"
        )
        yield Problem(f"{key}.rollout.max_new_tokens", what, "lower it, or raise batch.max_length")
    if rollout.min_new_tokens > rollout.max_new_tokens:
        what = f"is {rollout.min_new_tokens}, more than max_new_tokens"
        yield Problem(f"{key}.rollout.min_new_tokens", what, f"choose {rollout.max_new_tokens} or less")
    if batch.packing != "none":
        yield Problem(f"{key}.batch.packing", f"is {batch.packing}, and answers are not there to be packed", "use none")
    if batch.tokens:
        what = f"is {batch.tokens}, and answers have no length before they are given"
        yield Problem(f"{key}.batch.tokens", what, "set batch.rows")
    if batch.by_length:
        what = "sorts rows by their length, and answers have none before they are given"
        yield Problem(f"{key}.batch.by_length", what, "leave it out")
    if batch.too_long == "split":
        what = "is split, and part of a prompt cannot be answered"
        yield Problem(f"{key}.batch.too_long", what, "use cut, which leaves out the oldest turns, or drop")


def _control(config: PpoConfig, key: str) -> Iterator[Problem]:
    """A coefficient is moved by a factor: from 0 to 0, and below 0 where one correction is too large a share."""
    kl, prompts = config.kl, config.rollout.prompts
    if kl.control == "fixed":
        return
    if not kl.coefficient:
        what = "is 0, and adaptive control multiplies it: it would stay 0"
        yield Problem(f"{key}.kl.coefficient", what, "begin with more, or use control: fixed")
    if LARGEST * prompts >= kl.horizon:
        what = f"is {kl.horizon}, and a rollout of {prompts} answers could correct the coefficient to 0 or below"
        remedy = f"set it above {LARGEST * prompts:g}; ten rollouts are {10 * prompts}"
        yield Problem(f"{key}.kl.horizon", what, remedy)
