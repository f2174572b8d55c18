"""What would leave new rows as they began, though they are to train."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.errors import Problem
from tunekit.values import Plan, PlannedPlugin

from . import VocabularyConfig

KEY = "use.vocabulary.train"
EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings", "token_embedding", "lm_head")
"""What the families call the matrices that hold a row for each token."""


def problems(config: VocabularyConfig, plan: Plan) -> Iterator[Problem]:
    """Look at every plugin that decides what trains."""
    if not config.train or not config.named:
        return
    for planned in _everyone(plan):
        provides = planned.plugin.provides
        if "weights.freeze" in provides:
            if not any(name.rpartition(".")[2] in EMBEDDINGS for name in planned.plugin.config.extra):
                what = f"is true, and {planned.name} freezes the embedding, so that new rows would stay as they begin"
                yield Problem(KEY, what, f"name the embedding in use.{planned.name}.extra, or set it to false")
        elif "weights.full" in provides:
            if planned.plugin.config.freeze_embeddings:
                what = f"is true, and use.{planned.name}.freeze_embeddings freezes the new rows with the others"
                yield Problem(KEY, what, "leave one of the two out")
        elif "adapter" in provides and "adapter.lora" not in provides:
            what = f"is true, and {planned.name} trains no rows of an embedding"
            yield Problem(KEY, what, "use lora, train all weights, or set it to false")


def _everyone(plan: Plan) -> Iterator[PlannedPlugin]:
    yield from plan.plugins
    for stage in plan.stages:
        yield from (used for used in stage.uses if used not in plan.plugins)
