"""What a stage has to satisfy: it learns, tells what happens, and continues to the numbers it would have reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ..calls import implements
from ..errors import InterruptedRunError
from ..plan.ordering import REWARDED
from ..values import Event, Examples, ModelBundle, Prepared, StageContext, StageResult
from .data import conversations
from .observing import Snapshot, changed, snapshot, trainable
from .plugins import PluginSuite
from .runs import default_plugin, stage_context
from .tiny import tiny_bundle


@dataclass
class Trained:
    """One finished stage as it is seen from outside."""

    result: StageResult
    before: Snapshot
    after: Snapshot
    events: list[Event]

    def numbers(self, kind: str, metric: str) -> list[float]:
        """One metric over the events of one kind."""
        return [event.metrics[metric] for event in self.events if event.kind == kind and metric in event.metrics]


class StageSuite(PluginSuite):
    """For plugins that train.

    The plugin's options should make about 8 steps on the 8 examples of `data`, with a checkpoint every 2 steps.
    `progress` is the metric of `step` events that has to fall, or to rise where `rising` says so.
    """

    progress: ClassVar[str] = "loss"
    rising: ClassVar[bool] = False

    def bundle(self) -> ModelBundle:
        """What is trained: all weights of the same tiny model each time, unless the subclass has another."""
        return tiny_bundle()

    def data(self) -> Examples:
        """What it is trained on."""
        return conversations()

    def prepare(self, context: StageContext, tokenizer: Any) -> Prepared:
        """What the stage makes of the data before it sees a model."""
        prepared: Prepared = context.calls.own(
            "tunekit_prepare_data", data=self.data(), tokenizer=tokenizer, context=context
        )
        prepared.account.stop_on_problems()
        return prepared

    def train(
        self, folder: Path, resume: bool = False, seed: int = 0, watch: Callable[[Event], None] | None = None
    ) -> Trained:
        """Train a fresh bundle in `folder` with the default optimiser; `watch` is told every event."""
        bundle, events = self.bundle(), []
        plugin = self.make()

        def see(event: Event) -> None:
            events.append(event)
            if watch is not None:
                watch(event)

        context = stage_context(plugin, *self._helpers(), folder=folder, seed=seed, watch=see, resume=resume)
        before = snapshot(bundle.model)
        data = self.prepare(context, bundle.tokenizer)
        result: StageResult = context.calls.own("tunekit_train_stage", bundle=bundle, data=data, context=context)
        return Trained(result, before, snapshot(result.bundle.model), events)

    def _helpers(self) -> list[Any]:
        own = any(implements(plugin, "tunekit_optimizer") for plugin in self.companions)
        return [*self.companions, *([] if own else [default_plugin("tunekit_optimizer")])]

    def test_each_row_is_prepared_or_accounted_for(self, tmp_path: Path) -> None:
        """Items are made of token sequences with a weight for every token, and each item has a token to learn.

        A stage that learns from its own answers has none yet.
        """
        prepared = self.prepare(stage_context(self.make(), *self._helpers(), folder=tmp_path), self.bundle().tokenizer)
        items = list(prepared)
        assert items
        assert prepared.size in (None, len(items))
        assert prepared.account.rows == sum(1 for _ in self.data())
        for item in items:
            waiting = REWARDED in self.make().provides
            assert waiting or any(any(sequence.weights) for sequence in item.sequences), f"{item} has nothing to learn"
            for sequence in item.sequences:
                assert len(sequence.ids) == len(sequence.weights)
                assert sequence.where

    def test_preparing_twice_gives_the_same(self, tmp_path: Path) -> None:
        """The order of the data and every token are the same in each pass."""

        def tokens() -> list[list[int]]:
            context = stage_context(self.make(), *self._helpers(), folder=tmp_path)
            prepared = self.prepare(context, self.bundle().tokenizer)
            return [list(map(int, sequence.ids)) for item in prepared for sequence in item.sequences]

        assert tokens() == tokens()

    def test_it_makes_progress(self, tmp_path: Path) -> None:
        """The metric falls, or rises, from the first steps to the last."""
        numbers = self.train(tmp_path).numbers("step", self.progress)
        assert len(numbers) >= 4, "fewer than 4 steps told"
        half = len(numbers) // 2
        first, second = sum(numbers[:half]) / half, sum(numbers[half:]) / (len(numbers) - half)
        moves = second > first if self.rising else second < first
        assert moves, f"{self.progress} does not {'rise' if self.rising else 'fall'}: {numbers}"

    def test_only_what_trains_changes(self, tmp_path: Path) -> None:
        """Every trainable parameter moves; frozen ones stay bit-identical."""
        named = set(trainable(self.bundle().model))
        trained = self.train(tmp_path)
        assert changed(trained.before, trained.after) == named

    def test_the_same_seed_gives_the_same_numbers(self, tmp_path: Path) -> None:
        """Losses and parameters are bit-identical the second time."""
        first, second = self.train(tmp_path / "first"), self.train(tmp_path / "second")
        assert first.numbers("step", self.progress) == second.numbers("step", self.progress)
        assert not changed(first.after, second.after)

    def test_another_seed_gives_other_numbers(self, tmp_path: Path) -> None:
        """The seed reaches the order of the data, or whatever else is random."""
        first, second = self.train(tmp_path / "first"), self.train(tmp_path / "second", seed=1)
        assert changed(first.after, second.after), "the seed changes nothing"

    @pytest.mark.parametrize(("kind", "step"), [("step", 3), ("saved", 4)])
    def test_interrupted_it_continues_to_the_same_numbers(self, tmp_path: Path, kind: str, step: int) -> None:
        """Stopped between two checkpoints or just after one, it ends with the bits of the uninterrupted run."""
        whole = self.train(tmp_path / "whole")

        def stop(event: Event) -> None:
            if (event.kind, event.step) == (kind, step):
                raise KeyboardInterrupt

        with pytest.raises((KeyboardInterrupt, InterruptedRunError)):
            self.train(tmp_path / "stopped", watch=stop)
        resumed = self.train(tmp_path / "stopped", resume=True)
        told = [event.step for event in resumed.events if event.kind == "step"]
        assert told[0] > 1, "it started again from the beginning"
        expected = whole.numbers("step", self.progress)
        assert resumed.numbers("step", self.progress) == expected[-len(told) :]
        assert not changed(whole.after, resumed.after), "the parameters differ from those of the uninterrupted run"

    def test_asked_to_resume_where_nothing_was_saved_it_starts(self, tmp_path: Path) -> None:
        """A run that was killed before its first checkpoint can be resumed too."""
        events = self.train(tmp_path, resume=True).events
        assert next(event.step for event in events if event.kind == "step") == 1

    def test_it_tells_what_happens_in_order(self, tmp_path: Path) -> None:
        """One `started`, each step once and counted from 1, at least one `saved`, one `finished` at the end."""
        events = self.train(tmp_path).events
        steps = [event.step for event in events if event.kind == "step"]
        assert events[0].kind == "started"
        assert events[-1].kind == "finished"
        assert steps == list(range(1, len(steps) + 1))
        assert {event.total_steps for event in events} == {len(steps)}, "total_steps is known from the start"
        assert any(event.kind == "saved" for event in events), "no checkpoint was told, though options ask for some"

    def test_the_result_leaves_what_it_names(self, tmp_path: Path) -> None:
        """Trained weights to open again, every artefact in the stage's folder, closing metrics that are numbers."""
        result = self.train(tmp_path).result
        assert {"adapter", "model"} & {artefact.kind for artefact in result.artefacts}, "no trained weights are left"
        for artefact in result.artefacts:
            assert artefact.path.exists(), f"{artefact.path} does not exist"
            assert artefact.path.is_relative_to(tmp_path), f"{artefact.path} is outside the stage's folder"
        assert result.metrics
        assert all(isinstance(value, (int, float)) for value in result.metrics.values())
