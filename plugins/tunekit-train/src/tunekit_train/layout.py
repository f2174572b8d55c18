"""How the sequences of a batch lie in tensors: end to end, behind a prompt they share, or padded to the longest."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunekit.values import Item, TokenSequence

SHORTEST_PREFIX = 8
"""Tokens that must be shared to be worth a segment of their own: each costs one more call of the attention."""


@dataclass(frozen=True)
class Layout:
    """A batch as tensors.

    `input_ids` and `position_ids` are [batch, seq]. Padded, `attention_mask` [batch, seq] says what is real. End to
    end, batch is 1 and `lengths` are those of the segments; a segment that attends to more keys than it has tokens
    (`key_lengths`) attends to the last segment before it that stands alone, and then to itself.

    The rest is [supervised], in the order of the sequences: `positions` (flat in batch x seq) whose logits predict a
    supervised token, that token in `targets`, its loss weight in `weights`, and in `owners` the index of its sequence.
    Sequences that share a prompt may share positions. `ends` [sequences] is where each sequence has its last token.
    `inputs` are further arguments of the model, which padded sequences alone may have.
    """

    input_ids: Tensor
    position_ids: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor
    owners: Tensor
    ends: Tensor
    attention_mask: Tensor | None = None
    lengths: tuple[int, ...] = ()
    key_lengths: tuple[int, ...] = ()
    inputs: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Layout:
        """Return the layout on another device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return replace(self, **moved, inputs=inputs)


@dataclass(frozen=True)
class _Place:
    """Where a sequence lies: its first `shared` tokens from `prefix` on, the others from `own` on."""

    prefix: int
    shared: int
    own: int

    def flat(self, index: Tensor) -> Tensor:
        """The flat positions of these tokens of the sequence."""
        return torch.where(index < self.shared, index + self.prefix, index + (self.own - self.shared))


def lay_end_to_end(sequences: List[TokenSequence]) -> Layout:
    """Lay sequences one after the other in one row, positions restarting with each."""
    return _lay([(0, (sequence,)) for sequence in sequences])


def lay_shared(items: List[Item]) -> Layout:
    """Lay the prompt that the sequences of an item share once, and behind it what each has of its own."""
    groups: list[tuple[int, tuple[TokenSequence, ...]]] = []
    for item in items:
        shared = shared_tokens(item)
        groups.extend([(shared, item.sequences)] if shared else [(0, (sequence,)) for sequence in item.sequences])
    return _lay(groups)


def laid_tokens(items: List[Item], share_prompts: bool) -> int:
    """Tokens in the row that items are laid in, with or without sharing."""
    saved = [shared_tokens(item) * (len(item.sequences) - 1) for item in items] if share_prompts else []
    return sum(item.tokens for item in items) - sum(saved)


def shared_tokens(item: Item) -> int:
    """Tokens that the sequences of an item run once; 0 where that is not worth it."""
    shared = common_prefix(item.sequences)
    return shared if shared >= SHORTEST_PREFIX else 0


def common_prefix(sequences: List[TokenSequence]) -> int:
    """Tokens that all of several sequences begin with, leaving each at least one of its own; 0 for a single one."""
    if len(sequences) < 2:
        return 0
    first, shared = np.asarray(sequences[0].ids), min(len(sequence) for sequence in sequences) - 1
    for other in sequences[1:]:
        differ = np.flatnonzero(first[:shared] != np.asarray(other.ids)[:shared])
        shared = int(differ[0]) if len(differ) else shared
    return max(shared, 0)


def lay_padded(sequences: List[TokenSequence], padding_id: int) -> Layout:
    """Lay each sequence in a row of its own, padded on the right to the longest."""
    longest = max(len(sequence.ids) for sequence in sequences)
    ids = torch.full((len(sequences), longest), padding_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = torch.as_tensor(sequence.ids, dtype=torch.long)
        mask[row, : len(sequence.ids)] = 1
    places = [_Place(0, 0, row * longest) for row in range(len(sequences))]
    positions = torch.arange(longest).expand(len(sequences), -1)
    return Layout(
        ids, positions, **_supervision(sequences, places), attention_mask=mask, inputs=_inputs(sequences, ids)
    )


def _inputs(sequences: List[TokenSequence], ids: Tensor) -> Mapping[str, Tensor]:
    """What the model is given of padded sequences besides their tokens."""
    given = [sequence.inputs for sequence in sequences if sequence.inputs is not None]
    return given[0].laid(given, ids) if given else {}


def _lay(groups: List[tuple[int, tuple[TokenSequence, ...]]]) -> Layout:
    """Lay groups of sequences one after the other: first what a group shares, then what each has of its own."""
    ids: list[Tensor] = []
    positions: list[Tensor] = []
    places: list[_Place] = []
    lengths: list[int] = []
    start = 0

    def add(part: Any, first: int) -> int:
        nonlocal start
        ids.append(torch.as_tensor(part, dtype=torch.long))
        positions.append(torch.arange(first, first + len(part)))
        lengths.append(len(part))
        start += len(part)
        return start - len(part)

    for shared, group in groups:
        assert all(sequence.inputs is None for sequence in group), "what has images is padded"
        prefix = add(group[0].ids[:shared], 0) if shared else 0
        places.extend(_Place(prefix, shared, add(sequence.ids[shared:], shared)) for sequence in group)
    sequences = [sequence for _, group in groups for sequence in group]
    row, at = torch.cat(ids)[None], torch.cat(positions)[None]
    keys = tuple(int(each[-1]) + 1 for each in positions)
    return Layout(row, at, **_supervision(sequences, places), lengths=tuple(lengths), key_lengths=keys)


def _supervision(sequences: List[TokenSequence], places: List[_Place]) -> dict[str, Any]:
    """Where the supervised tokens are predicted, one position before each, and where the sequences end."""
    positions, targets, weights, owners = [], [], [], []
    for owner, (sequence, place) in enumerate(zip(sequences, places, strict=True)):
        weight = torch.as_tensor(sequence.weights, dtype=torch.float32)
        index = weight[1:].nonzero()[:, 0] + 1  # the first token is never a target
        positions.append(place.flat(index - 1))
        targets.append(torch.as_tensor(sequence.ids, dtype=torch.long)[index])
        weights.append(weight[index])
        owners.append(torch.full_like(index, owner))
    last = [place.own - place.shared + len(sequence) - 1 for sequence, place in zip(sequences, places, strict=True)]
    names = ("positions", "targets", "weights", "owners")
    parts = {name: torch.cat(part) for name, part in zip(names, (positions, targets, weights, owners), strict=True)}
    return {**parts, "ends": torch.tensor(last)}
