"""The rows on which an export is compared: held out by the run, else trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from ..calls import Calls
from ..data import prepare
from ..errors import ExportError
from ..options import ExportConfig
from ..record import Record
from ..values import Item, Plan, TokenSequence


def compared_rows(
    plan: Plan, record: Record, adapter: str | None, config: ExportConfig, tokenizer: Any
) -> tuple[tuple[TokenSequence, ...], bool]:
    """The rows as tokens, and whether they were held out: of the data of the last stage that trained the adapter.

    Of an item with several sequences the first one, such as the chosen answer. Raises ExportError where there is none.
    """
    stages = [stage for stage in plan.stages if stage.adapter == adapter] or list(plan.stages)
    if not stages:
        raise ExportError("the run has no stage, so nothing was trained", "name a run that has trained a model")
    stage = stages[-1]
    noted = next((done for done in record.finished_stages() if done["index"] == stage.index), {})
    held_out = list(noted.get("held_out") or ())[: config.rows]
    items = iter(prepare(plan, Calls(plan.plugins), stage, tokenizer))
    chosen = _numbered(items, held_out) if held_out else islice(items, config.rows)
    sequences = (item.sequences[0] for item in chosen)
    rows = tuple(_cut(sequence, config.row_tokens) for sequence in sequences if len(sequence) > 1)
    if not rows:
        raise ExportError(f"the data of {stage.name} holds no row to compare on", "give it data that has some")
    return rows, bool(held_out)


def _numbered(items: Iterator[Item], numbers: list[int]) -> Iterator[Item]:
    """The items of these numbers, which ascend."""
    wanted = set(numbers)
    return (item for number, item in enumerate(islice(items, max(numbers) + 1)) if number in wanted)


def _cut(sequence: TokenSequence, length: int) -> TokenSequence:
    """The first so many tokens; a sequence with images stays whole, since each needs all tokens that stand for it."""
    if sequence.inputs is not None:
        return sequence
    return replace(sequence, ids=sequence.ids[:length], weights=sequence.weights[:length])
