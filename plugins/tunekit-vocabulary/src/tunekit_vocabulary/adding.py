"""Adding tokens to a tokenizer, which remembers what was added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tunekit.values import Report

from . import VocabularyConfig

ATTRIBUTE = "tunekit_vocabulary"
"""Where a tokenizer object keeps what was added to it; it is not saved."""


@dataclass(frozen=True)
class Added:
    """What this tokenizer has been given: how many ids it had, and the new tokens with their ids."""

    known: int
    ids: dict[str, int] = field(default_factory=dict)


def added_to(tokenizer: Any) -> Added:
    """What was added to this tokenizer object; nothing to one that came with all it has."""
    found: Added = getattr(tokenizer, ATTRIBUTE, None) or Added(size_of(tokenizer))
    return found


def size_of(tokenizer: Any) -> int:
    """How many rows its tokens need: one more than the largest id, as some tokenizers leave ids out."""
    return int(max(tokenizer.get_vocab().values())) + 1


def add_(tokenizer: Any, config: VocabularyConfig) -> Report:
    """Add the tokens that the tokenizer does not know, each as one that is never taken apart."""
    before, known = added_to(tokenizer), tokenizer.get_vocab()
    special = [token for token in config.special_tokens if token not in known]
    ordinary = [token for token in config.tokens if token not in known]
    listed = list(tokenizer.extra_special_tokens)
    if special:
        tokenizer.add_special_tokens({"extra_special_tokens": special}, replace_extra_special_tokens=False)
    if ordinary:
        tokenizer.add_tokens(ordinary)
    ids = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in (*special, *ordinary)}
    setattr(tokenizer, ATTRIBUTE, Added(before.known, {**before.ids, **ids}))
    has = [token for token in config.named if token not in ids and token not in before.ids]
    summary = f"{len(ids)} new tokens, {size_of(tokenizer)} in all" if ids else "no token that the tokenizer has not"
    if has:
        summary += f"; it has {', '.join(has)} already"
    return Report(summary, {"added": ids, "known_already": has}, _marked(tokenizer, listed, before))


def _marked(tokenizer: Any, listed: list[str], before: Added) -> Callable[[], None]:
    """Take back what can be taken back of a tokenizer: which tokens are special, and what was remembered."""

    def undo() -> None:
        tokenizer.extra_special_tokens = listed
        setattr(tokenizer, ATTRIBUTE, before)

    return undo
