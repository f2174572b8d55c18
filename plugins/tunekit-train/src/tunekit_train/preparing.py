"""Examples become items: encoded once, every row accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunekit.errors import DataError, PlanError, Problem
from tunekit.values import Example, Examples, Kind, Prepared, StageContext, ToolFormat

from .encoding import Encoder, Rules
from .items import Items


def prepare(data: Examples, tokenizer: Any, rules: Rules, kinds: frozenset[Kind], context: StageContext) -> Prepared:
    """Encode all examples. Raises DataError where the data is of a kind that the stage does not train on."""
    encoder = Encoder(tokenizer, rules, _tool_format(context))
    items = encoder.encode_all(_of_kind(data, kinds, context), data.account)
    return Items(items, data.account, data.mixing)


def _of_kind(examples: Examples, kinds: frozenset[Kind], context: StageContext) -> Iterator[Example]:
    for example in examples:
        if example.kind in kinds:
            yield example
            continue
        told = {"text": "a document", "conversation": "a conversation", "preference": "a pair of a chosen and a "
                "rejected answer", "labelled": "an answer that is called good or bad"}  # fmt: skip
        wanted = " or ".join(told[kind] for kind in sorted(kinds))
        reason = f"is {told[example.kind]}, and {context.name} trains on {wanted}"
        raise DataError([Problem(example.where, reason, "name another stage, other data, or another `format:`")])


def _tool_format(context: StageContext) -> ToolFormat | None:
    try:
        found: ToolFormat = context.calls.own("tunekit_tool_format")
    except PlanError:
        return None
    return found
