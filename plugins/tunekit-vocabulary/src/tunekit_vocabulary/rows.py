"""The rows of new tokens: how many an embedding needs, and what each begins as."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tunekit.errors import TunekitError
from tunekit.values import Estimate, Report

from . import VocabularyConfig
from .adding import added_to, size_of

MARK = "tunekit_vocabulary"
"""Where a model's config keeps which tokens have been given rows, so that rows that were trained are not begun anew."""


def rows_of(config: Any) -> dict[str, int]:
    """The tokens that were given rows in a model with this config, with their ids."""
    return dict(getattr(config, MARK, None) or {})


def needed_rows(rows: int, tokens: int, multiple: int) -> int:
    """How many rows an embedding of `rows` gets for so many tokens: as many as it has, where those are enough."""
    return rows if tokens <= rows else -(-tokens // multiple) * multiple


def estimate_rows(config: VocabularyConfig, estimate: Estimate) -> Estimate:
    """Let the skeleton grow, and count what was added."""
    model, tokenizer = estimate.skeleton, estimate.tokenizer
    assert model is not None, "the loader's estimate comes before"
    before, bytes_before = _counted(model)
    rows = needed_rows(_rows(model), size_of(tokenizer), config.multiple)
    _resize_(model, rows)
    setattr(model.config, MARK, {**rows_of(model.config), **added_to(tokenizer).ids})
    after, bytes_after = _counted(model)
    weights = estimate.memory.get("weights", 0) + bytes_after - bytes_before
    return replace(
        estimate,
        parameters=estimate.parameters + after - before,
        trainable=estimate.trainable + after - before,
        memory=estimate.with_memory(weights=weights),
    )


def grow_(model: Any, tokenizer: Any, config: VocabularyConfig) -> Report:
    """Give every token a row in the embedding, and in the head where that is another matrix.

    A new row begins as m + s e, with m the mean of the rows that the tokens of the base have (or, where `start` is
    `description`, of the words that describe it), s the noise's standard deviation and e normal. Means are taken in
    fp64 and noise is drawn on the CPU, so that rows are the same wherever the base is loaded.
    """
    added, rows = added_to(tokenizer), _rows(model)
    kept = rows_of(model.config)
    fresh = {token: at for token, at in added.ids.items() if token not in kept}
    after = needed_rows(rows, size_of(tokenizer), config.multiple)
    places = sorted({*fresh.values(), *range(rows, after)})
    described = _described(tokenizer, fresh, config) if config.start == "description" else {}
    begun = _Begun(min(rows, added.known), places, described, config)
    old = [matrix.detach()[[at for at in places if at < rows]].clone() for matrix in _matrices(model)]
    values = [begun.values(matrix.detach(), stream) for stream, matrix in enumerate(_matrices(model))]
    _resize_(model, after)
    for matrix, value in zip(_matrices(model), values, strict=True):
        _write_(matrix, places, value)
    setattr(model.config, MARK, {**kept, **added.ids})
    summary = f"{rows} rows, now {after}: {len(places)} begin as {begun.told}" if places else f"{rows} rows are enough"
    details = {"rows_before": rows, "rows": after, "new": places, "noise": config.deviation}
    return Report(summary, details, _undo(model, rows, [at for at in places if at < rows], old, kept))


class _Begun:
    """What new rows begin as, from the rows that are there: the first `known` of them, of real tokens."""

    def __init__(
        self, known: int, places: Sequence[int], described: dict[int, list[int]], config: VocabularyConfig
    ) -> None:
        self.known, self.places, self.described, self.config = known, places, described, config

    @property
    def told(self) -> str:
        """In words."""
        what = "the mean of the words that describe them" if self.described else f"the mean of {self.known} rows"
        return f"{what} and noise of {self.config.deviation:g}" if self.config.deviation else what

    def values(self, matrix: Tensor, stream: int) -> Tensor:
        """fp32 [places, dim] on the CPU; `stream` keeps the noise of embedding and head apart."""
        mean = _mean(matrix[: self.known])
        means = [_mean(matrix[self.described[at]]) if at in self.described else mean for at in self.places]
        values = torch.stack(means) if means else mean.new_zeros(0, len(mean))
        generator = torch.Generator().manual_seed(2 * self.config.seed + stream)
        noise = torch.randn(values.shape, generator=generator, dtype=torch.float64)
        return (values + self.config.deviation * noise).float()


def _mean(rows: Tensor) -> Tensor:
    """fp64 [dim] on the CPU, of [rows, dim]."""
    return rows.mean(dim=0, dtype=torch.float64).cpu()


def _described(tokenizer: Any, fresh: dict[str, int], config: VocabularyConfig) -> dict[int, list[int]]:
    """The tokens of each new token's description, by the new id; new tokens in it say nothing yet, and do not count."""
    found = {}
    for token, at in fresh.items():
        words = tokenizer(config.descriptions[token], add_special_tokens=False)["input_ids"]
        known = [word for word in words if word < added_to(tokenizer).known]
        if not known:
            what = f"use.vocabulary: the description of {token} holds no token that the model knows"
            raise TunekitError(what, "describe it in words of its own language")
        found[at] = known
    return found


def _rows(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _matrices(model: Any) -> list[Tensor]:
    """Embedding and head; one matrix where they are tied, or where there is no head."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    found: list[Tensor] = []
    for end in ends:
        if end is not None and not any(end.weight is other for other in found):
            if end.weight.ndim != 2 or not end.weight.is_floating_point():
                what = f"use.vocabulary: {type(end).__name__} holds its rows in packed form, so that none can be added"
                raise TunekitError(what, "leave embedding and head out of the quantisation, or take vocabulary out")
            found.append(end.weight)
    return found


def _resize_(model: Any, rows: int) -> None:
    """By transformers, which also ties and counts anew; what it fills new rows with is written over."""
    if rows != _rows(model):
        with torch.random.fork_rng():
            model.resize_token_embeddings(rows, mean_resizing=False)


def _write_(matrix: Tensor, places: Sequence[int], values: Tensor) -> None:
    if places:
        with torch.no_grad():
            matrix[list(places)] = values.to(matrix)


def _counted(model: Any) -> tuple[int, int]:
    """Parameters, and their bytes."""
    own = list(model.parameters())
    return sum(each.numel() for each in own), sum(each.numel() * each.element_size() for each in own)


def _undo(
    model: Any, rows: int, places: Sequence[int], old: Sequence[Tensor], kept: dict[str, int]
) -> Callable[[], None]:
    def undo() -> None:
        _resize_(model, rows)
        for matrix, value in zip(_matrices(model), old, strict=True):
            _write_(matrix, places, value)
        if kept:
            setattr(model.config, MARK, kept)
        else:
            delattr(model.config, MARK)

    return undo
