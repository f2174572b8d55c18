"""Each answer beside another one that does not belong to its prompt: what the KL term is estimated from."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from tunekit.values import Item, TokenSequence
from tunekit_train.items import IndexedItems, Indices
from tunekit_train.permuting import permutation


class MismatchedItems(IndexedItems):
    """Items of one answer, each with a second sequence: its prompt, and the answer of another item.

    Which other is fixed for the whole run by `seed`; it stands behind another prompt as far as the data allows. Of the
    items numbered in `training` (all by default), others of them are taken, each once, so that none learns from a
    held-out answer. The prompt is what stands before the first supervised token, the answer all from there on, cut at
    the end so that both together have `max_length` tokens at most. Made when it is asked for; nothing is stored.
    """

    def __init__(self, items: IndexedItems, seed: int, max_length: int, training: Indices | None = None) -> None:
        self._items, self._max_length = items, max_length
        self.account, self.mixing = items.account, items.mixing
        chosen = np.arange(len(items)) if training is None else training
        digest = hashlib.sha256(chosen.tobytes()).hexdigest()
        self.fingerprint = f"{items.fingerprint} mismatched {seed} {max_length} {digest}" if items.fingerprint else ""
        prompts, self._starts = prompts_of(items)
        self.prompts = len(np.unique(prompts[chosen]))
        """How many different prompts the items of `training` have."""
        self._others = partners(prompts, f"{seed} mismatch")
        self._others[chosen] = chosen[partners(prompts[chosen], f"{seed} mismatch")]

    def __len__(self) -> int:
        return len(self._items)

    def take(self, index: int) -> Item:
        """The item of this number with its second sequence."""
        item, other = self._items.take(index), self._items.take(int(self._others[index]))
        own = item.sequences[0]
        return replace(item, sequences=(own, mismatched(own, other.sequences[0], self._max_length)))

    @cached_property
    def lengths(self) -> Indices:
        """Tokens of each item."""
        own = self._items.lengths
        answers = own - self._starts
        mixed: Indices = np.minimum(self._starts + answers[self._others], self._max_length)
        return own + mixed


def prompts_of(items: IndexedItems) -> tuple[Indices, Indices]:
    """A number for each item, the same where the prompt is, and where its answer begins, [items] each; one pass.

    Of each prompt 16 bytes are remembered.
    """
    numbers: dict[bytes, int] = {}
    prompts, starts = np.empty(len(items), np.int64), np.empty(len(items), np.int64)
    for at, item in enumerate(items):
        sequence = item.sequences[0]
        starts[at] = _start(sequence)
        prompt = np.asarray(sequence.ids[: starts[at]], np.int64).tobytes()
        prompts[at] = numbers.setdefault(hashlib.blake2b(prompt, digest_size=16).digest(), len(numbers))
    return prompts, starts


def partners(prompts: Indices, seed: str) -> Indices:
    """For each item the number of another, [items]; each is used once.

    All items lie in one random circle, those of one prompt side by side, and each takes the one that lies as many
    places before it as the commonest prompt has items, or half of the circle. So none meets its own prompt, unless that
    one has more than half of the items: then as few as can be, and none itself.
    """
    circle = permutation(len(prompts), seed)
    _, first, group = np.unique(prompts[circle], return_index=True, return_inverse=True)
    circle = circle[np.argsort(first[group], kind="stable")]
    others = np.empty_like(circle)
    most = int(np.bincount(group, minlength=1).max())
    others[circle] = np.roll(circle, min(most, len(circle) // 2))
    return others


def mismatched(own: TokenSequence, other: TokenSequence, max_length: int) -> TokenSequence:
    """The prompt of one sequence with the answer of another, cut at the end."""
    prompt, answer = _start(own), _start(other)
    room = max_length - prompt
    return replace(
        own,
        ids=_joined(own.ids[:prompt], other.ids[answer : answer + room]),
        weights=_joined(own.weights[:prompt], other.weights[answer : answer + room]),
        cut=own.cut + max(0, len(other) - answer - room),
    )


def _start(sequence: TokenSequence) -> int:
    """Where the answer begins: the first supervised token."""
    return int(np.flatnonzero(np.asarray(sequence.weights))[0])


def _joined(first: Any, second: Any) -> Any:
    return np.concatenate([np.asarray(first), np.asarray(second)])
