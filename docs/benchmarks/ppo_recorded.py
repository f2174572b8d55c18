"""PPO that writes down what it learns from, for a contender that is to learn from the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tunekit.hooks import hookimpl
from tunekit.values import ModelBundle, Prepared, StageContext, StageResult
from tunekit_ppo import Ppo
from tunekit_ppo.rollouts import Rollouts
from tunekit_train import Batch, train

FIGURES = ("log_probs", "values", "advantages", "returns")


class RecordedRollouts(Rollouts):
    """Rollouts that are written into the stage's folder, `answers.json`: the rows of each step."""

    def produce(self, number: int) -> Sequence[Batch]:
        """Answer, and write the answers down."""
        batches = super().produce(number)
        rows = [[_written(item) for item in batch.items] for batch in batches]
        (self.job.context.folder / "answers.json").write_text(json.dumps(rows))
        return batches


class Recorded(Ppo):
    """PPO with such rollouts."""

    @hookimpl
    def tunekit_train_stage(self, bundle: ModelBundle, data: Prepared, context: StageContext) -> StageResult:
        """Answer, write down, learn."""
        context = self.config.seeded(context)
        rollouts = RecordedRollouts(data, self.config, self.rules(), context)
        return train(self.objective(), rollouts, bundle, self.config, context)


def _written(item: Any) -> dict[str, list[float]]:
    (sequence,) = item.sequences
    figures = {name: getattr(item, name).tolist() for name in FIGURES}
    return {"ids": [int(each) for each in sequence.ids], "weights": [float(w) for w in sequence.weights], **figures}
