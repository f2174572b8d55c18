"""Examples become items: encoded once and kept for the next run, or while training, every row accounted for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tunekit.data import cache_folder, code_fingerprint
from tunekit.errors import DataError, PlanError, Problem
from tunekit.values import Example, Examples, Item, Kind, Prepared, StageContext, ToolFormat

from .cache import DataCache
from .items import IndexedItems, Items
from .streaming import ItemEncoder, StreamedItems

if TYPE_CHECKING:
    from .encoding import Rules


def prepare(data: Examples, tokenizer: Any, rules: Rules, kinds: frozenset[Kind], context: StageContext) -> Prepared:
    """Encode all examples by rules. Raises DataError where the data is of a kind that the stage does not train on."""
    from .encoding import Encoder

    return prepare_with(Encoder(tokenizer, rules, tool_format(context)), data, kinds, context)


def prepare_with(encoder: ItemEncoder, data: Examples, kinds: frozenset[Kind], context: StageContext) -> Prepared:
    """Encode all examples, or take them from an earlier run that did the same; streamed data waits for the training.

    A sample, which has no fingerprint, is encoded in memory.
    """
    fit = Fitting(kinds, context.name)
    if not data.fingerprint or getattr(encoder, "reads_images", False):
        return _in_memory(encoder.encode_all(fit(data), data.account), data)
    if data.mixing.streaming:
        return StreamedItems(data, encoder, fit, context.seed, cache_key(data.fingerprint, encoder.fingerprint, kinds))
    cache = DataCache(cache_folder("data"))
    key = cache_key(data.fingerprint, encoder.fingerprint, kinds, data.names)
    found = cache.find(key, data.mixing)
    if found is not None:
        return found
    return cache.make(key, encoder.encode_all(fit(data), data.account), data.account, data.mixing)


def _in_memory(items: Iterable[Item], data: Examples) -> Items:
    """Items that are not kept for the next run: a sample, or those with images, which are kept where they lie."""
    found = Items(items, data.account, data.mixing)
    if data.fingerprint:
        digest = hashlib.sha256(data.fingerprint.encode())
        for sequence in (each for item in found for each in item.sequences):
            digest.update(np.asarray(sequence.ids, dtype=np.int32).tobytes())
            digest.update((sequence.inputs.fingerprint if sequence.inputs is not None else "").encode())
        found.fingerprint = digest.hexdigest()
    return found


def with_margins(prepared: Prepared, weight: float, key: str) -> Prepared:
    """Return the pairs, for a stage in which margins count by this weight.

    Raises DataError where it was chosen and no row gives a margin. Streamed data, and a sample, is not looked through.
    """
    whole = isinstance(prepared, IndexedItems) and prepared.fingerprint
    if weight not in (0, 1) and whole and all(item.margin is None for item in prepared):
        what = f"is {weight:g}, and no row of the data gives a margin"
        raise DataError([Problem(f"{key}.margin_weight", what, "leave it out, or give margins in a column `margin`")])
    return prepared


def cache_key(data: str, encoder: str, kinds: frozenset[Kind], names: tuple[str, ...] = ()) -> str:
    """A name for what these data become in this encoder, as its code stands; with places in data of these `names`."""
    parts = [data, encoder, sorted(kinds), names, code_fingerprint(__name__)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


TOLD: dict[Kind, str] = {
    "text": "a document",
    "conversation": "a conversation",
    "preference": "a pair of a chosen and a rejected answer",
    "labelled": "an answer that is called good or bad",
}


class Fitting:
    """Lets examples through that the stage trains on."""

    def __init__(self, kinds: frozenset[Kind], stage: str) -> None:
        self.kinds, self.stage = kinds, stage

    def __call__(self, examples: Iterable[Example]) -> Iterator[Example]:
        for example in examples:
            if example.kind not in self.kinds:
                wanted = " or ".join(TOLD[kind] for kind in sorted(self.kinds))
                reason = f"is {TOLD[example.kind]}, and {self.stage} trains on {wanted}"
                remedy = "name another stage, other data, or another `format:`"
                raise DataError([Problem(example.where, reason, remedy)])
            yield example


def tool_format(context: StageContext) -> ToolFormat | None:
    """The tool format of a run, if it has one."""
    try:
        found: ToolFormat = context.calls.own("tunekit_tool_format")
    except PlanError:
        return None
    return found
