"""Rewards to test with, and a stage run on a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.testing import conversations, stage_context, tiny_bundle
from tunekit.values import Event, Sample, StageContext
from tunekit_lora import Lora
from tunekit_ppo import Ppo
from tunekit_train import AdamW


class Nothing(PluginConfig):
    """No options."""


class Letters(Plugin[Nothing]):
    """Values answers by the share of their characters that are small letters, and keeps what it was asked."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.asked: list[Sample] = []

    @hookimpl
    def tunekit_reward(self, samples: Sequence[Sample], context: StageContext) -> list[float]:
        """Between 0 and 1."""
        self.asked += samples
        return [sum("a" <= each <= "z" for each in sample.answer) / max(1, len(sample.answer)) for sample in samples]


class Ran:
    """A stage that has run: its result, its events, and what was asked of the rewards."""

    def __init__(self, result: Any, events: list[Event], letters: Letters) -> None:
        self.result, self.events, self.letters = result, events, letters

    def steps(self, metric: str) -> list[float]:
        """One metric over all steps."""
        return [event.metrics[metric] for event in self.events if event.kind == "step"]


SMALL: dict[str, Any] = {
    "learning_rate": 1e-3,
    "schedule": {"shape": "constant"},
    "batch": {"rows": 4},
    "rollout": {"prompts": 8, "epochs": 2, "max_new_tokens": 8},
}


@pytest.fixture
def run_ppo(tmp_path: Path) -> Callable[..., Ran]:
    """Run a small stage: `run_ppo(options, adapter=..., bundle=..., data=..., watch=..., resume=..., adapters=...)`."""

    def run(options: dict[str, Any] | None = None, folder: str = "stage", adapter: bool = True, **given: Any) -> Ran:
        letters, events = given.get("letters") or Letters(), list[Event]()
        stage = Ppo(**merged(SMALL, options or {}))

        def see(event: Event) -> None:
            events.append(event)
            given.get("watch", lambda event: None)(event)

        helpers = [*([Lora(rank=4, **given.get("lora", {}))] if adapter else []), AdamW(), *given.get("more", ())]
        settings = {name: given[name] for name in ("resume", "seed") if name in given}
        context = stage_context(stage, letters, *helpers, folder=tmp_path / folder, watch=see, name="ppo", **settings)
        if "adapters" in given:
            from dataclasses import replace

            context = replace(context, adapters=given["adapters"])
        bundle = given.get("bundle") or tiny_bundle()
        if adapter and not hasattr(bundle.model, "disable_adapter"):
            bundle = context.calls.own("tunekit_attach_adapter", bundle=bundle, context=context)
        data = given.get("data") or conversations()
        prepared = context.calls.own("tunekit_prepare_data", data=data, tokenizer=bundle.tokenizer, context=context)
        result = context.calls.own("tunekit_train_stage", bundle=bundle, data=prepared, context=context)
        return Ran(result, events, letters)

    return run


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Options with others over them, groups merged."""
    both = {**first, **second}
    for name in first.keys() & second.keys():
        if isinstance(first[name], dict):
            both[name] = {**first[name], **second[name]}
    return both
