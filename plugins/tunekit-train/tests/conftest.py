"""What the engine's tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunekit.values import Event, StageResult
from tunekit_train import TrainConfig, train
from tunekit_train.testing import CrossEntropy, bundle, context, random_items, tiny_llama


class Trained:
    """A finished training run: its result, its events and its folder."""

    def __init__(self, result: StageResult, events: list[Event], folder: Path) -> None:
        self.result, self.events, self.folder = result, events, folder

    def metrics(self, kind: str) -> list[dict[str, float]]:
        return [dict(event.metrics) for event in self.events if event.kind == kind]

    def steps(self, kind: str) -> list[int]:
        return [event.step for event in self.events if event.kind == kind]

    def values(self, name: str) -> list[float]:
        return [metrics[name] for metrics in self.metrics("step")]

    @property
    def weights(self) -> dict[str, Any]:
        return dict(self.result.bundle.model.named_parameters())


@pytest.fixture
def run_training(tmp_path: Path) -> Callable[..., Trained]:
    """Train a tiny model; options are those of `TrainConfig`."""
    count = 0

    def run(model: Any = None, items: Any = None, objective: Any = None, **options: Any) -> Trained:
        nonlocal count
        count += 1
        folder = options.pop("folder", tmp_path / f"stage-{count}")
        folder.mkdir(exist_ok=True)
        events: list[Event] = []
        own_seed = {"seed": options.pop("config_seed")} if "config_seed" in options else {}
        surroundings = {name: options.pop(name) for name in ("resume", "plugin", "seed") if name in options}
        result = train(
            objective or CrossEntropy(),
            random_items(12) if items is None else items,
            bundle(tiny_llama() if model is None else model),
            TrainConfig(**options, **own_seed),
            context(folder, events, **surroundings),
        )
        return Trained(result, events, folder)

    return run
