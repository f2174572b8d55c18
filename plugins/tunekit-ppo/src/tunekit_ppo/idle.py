"""Options that would do nothing beside the others, refused at plan time."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.errors import Problem

from .options import PpoConfig


def idle_problems(config: PpoConfig, key: str) -> Iterator[Problem]:
    """Each option that is set and that another one leaves nothing to do."""
    reward, kl = config.reward, config.kl
    if reward.url is None:
        for option in sorted({"timeout", "retries"} & reward.model_fields_set):
            yield _idle(f"{key}.reward.{option}", "there is no endpoint", "reward.url")
    if not any((reward.adapter, reward.model, reward.url)) and "weight" in reward.model_fields_set:
        what = "and it weighs the rewards of reward.adapter, reward.model and reward.url, of which there is none"
        remedy = "leave it out; a plugin under `use:` has an option of its own for what it weighs"
        yield Problem(f"{key}.reward.weight", f"is set, {what}", remedy)
    if kl.control == "fixed":
        for option in sorted({"target", "horizon"} & kl.model_fields_set):
            yield _idle(f"{key}.kl.{option}", "the coefficient is fixed", "kl.control: adaptive")
    if not kl.coefficient and "estimator" in kl.model_fields_set:
        yield _idle(f"{key}.kl.estimator", "the penalty weighs nothing", "kl.coefficient")
    if not config.value_coefficient and "value_clip" in config.model_fields_set:
        yield _idle(f"{key}.value_clip", "the value loss weighs nothing", "value_coefficient")


def _idle(where: str, why: str, missing: str) -> Problem:
    return Problem(where, f"is set, and {why}", f"leave it out, or set {missing}")
