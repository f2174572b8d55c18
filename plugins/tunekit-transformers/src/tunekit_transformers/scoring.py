"""Log-likelihoods of texts, in batches whose logits fit in a fixed budget of memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from tunekit.errors import TunekitError
from tunekit.values import ModelBundle, TextScore

from .prompts import context_length

if TYPE_CHECKING:
    from torch import Tensor

LOGITS_BYTES = 256 << 20
"""How much the float32 logits of one forward pass may take."""


def score_texts(bundle: ModelBundle, texts: Sequence[str], batch: int) -> list[TextScore]:
    """Score texts; the first token of each is given. Raises TunekitError for a text longer than the model reads."""
    encoded = [list(bundle.tokenizer(text, add_special_tokens=True)["input_ids"]) for text in texts]
    config = bundle.model.config.get_text_config(decoder=True)
    _refuse_too_long(encoded, context_length(bundle.model), bundle.source)
    budget = max(1, LOGITS_BYTES // (4 * config.vocab_size))
    scores = [TextScore(0.0, 0)] * len(texts)
    for indices in _batches(encoded, batch, budget):
        chosen = [encoded[index] for index in indices]
        if len(indices) == 1 and len(chosen[0]) > budget:
            sums = [_score_in_pieces(bundle.model, chosen[0], budget)]
        else:
            sums = _score_batch(bundle.model, chosen)
        for index, ids, likelihood in zip(indices, chosen, sums, strict=True):
            scores[index] = TextScore(likelihood, len(ids) - 1)
    return scores


def _refuse_too_long(encoded: Sequence[Sequence[int]], limit: int | None, source: str) -> None:
    for number, ids in enumerate(encoded, start=1):
        if limit is not None and len(ids) > limit:
            raise TunekitError(
                f"text {number} has {len(ids)} tokens, and {source} reads {limit} at most", "split it into parts"
            )


def _batches(encoded: Sequence[Sequence[int]], batch: int, budget: int) -> Iterator[list[int]]:
    """Group texts of similar length: at most `batch` of them, at most `budget` padded positions. One token: none."""
    indices = sorted((index for index, ids in enumerate(encoded) if len(ids) > 1), key=lambda i: len(encoded[i]))
    group: list[int] = []
    for index in indices:
        if group and (len(group) == batch or (len(group) + 1) * len(encoded[index]) > budget):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _score_batch(model: Any, encoded: Sequence[Sequence[int]]) -> list[float]:
    """Sum the log-likelihoods of texts laid side by side, padded on the right."""
    longest = max(len(ids) for ids in encoded)
    device = next(model.parameters()).device
    ids = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in encoded], device=device)
    real = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in encoded], device=device)
    logits = model(input_ids=ids, attention_mask=real, use_cache=False).logits
    logits = logits[:, -longest:]  # a prompt-learning adapter puts tokens of its own in front
    losses = _losses(logits[:, :-1], ids[:, 1:])
    return [float(value) for value in -(losses * real[:, 1:]).sum(dim=1)]


def _score_in_pieces(model: Any, encoded: Sequence[int], length: int) -> float:
    """Sum the log-likelihood of one long text piece by piece, the pieces joined by the key-value cache.

    A model that returns no such cache is given the text whole, and so is one whose adapter begins each call with tokens
    of its own.
    """
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return _score_batch(model, [encoded])[0]
    ids = torch.tensor([list(encoded)], device=next(model.parameters()).device)
    cache, total = None, 0.0
    for start in range(0, len(encoded) - 1, length):
        piece = ids[:, start : start + length]
        output = model(input_ids=piece, past_key_values=cache, use_cache=True)
        cache = getattr(output, "past_key_values", None)
        if cache is None:
            return _score_batch(model, [encoded])[0]
        targets = ids[:, start + 1 : start + 1 + length]
        total -= float(_losses(output.logits[:, : targets.shape[1]], targets).sum())
    return total


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each position in float32, returned as float64 (batch, seq)."""
    return cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").double().view_as(targets)
