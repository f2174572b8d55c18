"""What the four stages share: they train on pairs, and say so where margins of the data go unused."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import ClassVar, TypeVar

from tunekit.hooks import hookimpl
from tunekit.values import Kind, ModelBundle, Prepared, StageContext, StageResult
from tunekit_train import ConversationConfig, Stage

Config = TypeVar("Config", bound=ConversationConfig)
LOOKED_AT = 1000
"""Pairs among which a margin is looked for."""


class Pairwise(Stage[Config]):
    """A stage on pairs of a chosen and a rejected answer."""

    kinds: ClassVar[frozenset[Kind]] = frozenset({"preference"})

    @property
    def takes_margins(self) -> bool:
        """Whether the loss takes the margins that the data may give."""
        return False

    @hookimpl
    def tunekit_train_stage(self, bundle: ModelBundle, data: Prepared, context: StageContext) -> StageResult:
        """Train; the record says where the data gives margins and the loss takes none."""
        result: StageResult = super().tunekit_train_stage(bundle, data, context)
        streamed = data.size is None  # and read once only
        if self.takes_margins or streamed or all(item.margin is None for item in islice(data, LOOKED_AT)):
            return result
        return replace(result, facts={**result.facts, "margins": "given by the data, and not taken by the loss"})
