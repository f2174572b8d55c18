"""How the sequences of a batch lie in tensors: end to end, or padded to the longest."""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tunekit.values import TokenSequence


@dataclass(frozen=True)
class Layout:
    """A batch as tensors.

    `input_ids` and `position_ids` are [batch, seq]. End to end, batch is 1 and `lengths` are those of the segments;
    padded, `attention_mask` [batch, seq] says what is real. The rest is [supervised], in the order of the sequences:
    `positions` (flat in batch x seq) whose logits predict a supervised token, that token in `targets`, its loss weight
    in `weights`, and in `owners` the index of its sequence.
    """

    input_ids: Tensor
    position_ids: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor
    owners: Tensor
    attention_mask: Tensor | None = None
    lengths: tuple[int, ...] = ()

    def to(self, device: torch.device) -> Layout:
        """Return the layout on another device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def lay_end_to_end(sequences: List[TokenSequence]) -> Layout:
    """Lay sequences one after the other in one row, positions restarting with each."""
    lengths = [len(sequence.ids) for sequence in sequences]
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    ids = torch.cat([torch.as_tensor(sequence.ids, dtype=torch.long) for sequence in sequences])
    positions = torch.cat([torch.arange(length) for length in lengths])
    return Layout(ids[None], positions[None], **_supervision(sequences, starts), lengths=tuple(lengths))


def lay_padded(sequences: List[TokenSequence], padding_id: int) -> Layout:
    """Lay each sequence in a row of its own, padded on the right to the longest."""
    longest = max(len(sequence.ids) for sequence in sequences)
    ids = torch.full((len(sequences), longest), padding_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = torch.as_tensor(sequence.ids, dtype=torch.long)
        mask[row, : len(sequence.ids)] = 1
    starts = [row * longest for row in range(len(sequences))]
    positions = torch.arange(longest).expand(len(sequences), -1)
    return Layout(ids, positions, **_supervision(sequences, starts), attention_mask=mask)


def _supervision(sequences: List[TokenSequence], starts: List[int]) -> dict[str, Any]:
    """Where the supervised tokens are predicted: one position before each."""
    positions, targets, weights, owners = [], [], [], []
    for owner, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
        weight = torch.as_tensor(sequence.weights, dtype=torch.float32)
        index = weight[1:].nonzero()[:, 0] + 1  # the first token is never a target
        positions.append(index + (start - 1))
        targets.append(torch.as_tensor(sequence.ids, dtype=torch.long)[index])
        weights.append(weight[index])
        owners.append(torch.full_like(index, owner))
    names = ("positions", "targets", "weights", "owners")
    return {name: torch.cat(part) for name, part in zip(names, (positions, targets, weights, owners), strict=True)}
