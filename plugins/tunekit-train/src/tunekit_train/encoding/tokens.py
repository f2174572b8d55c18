"""Texts as token ids that know which characters they cover."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property
from re import Pattern
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import faults
from .fences import fence_pattern, pieces

Ids = NDArray[np.int32]
Weights = NDArray[np.float32]


NEAR = 8
"""Characters without a token that are passed over: blanks that some tokenizers count to no token."""


class Tokens:
    """The tokens of one text: as the tokenizer encoded it, or with the characters [start, end) of each token."""

    __slots__ = ("_offsets", "encoding", "ids")

    def __init__(self, ids: Sequence[int], encoding: Any = None, offsets: list[tuple[int, int]] | None = None) -> None:
        self.ids: Ids = np.array(ids, dtype=np.int32)
        self.encoding = encoding
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """The characters [start, end) of each token. Costly for long texts: asked for where nothing else helps."""
        if self._offsets is None:
            self._offsets = self.encoding.offsets
        return self._offsets

    def first(self, place: int) -> int:
        """The first token that reaches beyond a place in the text."""
        near = self._near(place)
        if near is None:
            return bisect_right([end for _, end in self.offsets], place)
        while near and self.encoding.token_to_chars(near - 1)[1] > place:
            near -= 1
        return near

    def last(self, place: int) -> int:
        """The first token that begins at a place in the text or behind it: one after the last before it."""
        near = self._near(place)
        if near is None or (near < len(self) and self.encoding.token_to_chars(near)[0] < place):
            return bisect_left([start for start, _ in self.offsets], place)
        while near and self.encoding.token_to_chars(near - 1)[0] >= place:
            near -= 1
        return near

    def _near(self, place: int) -> int | None:
        """The token at a place or closely behind it; None where there is none, or only offsets are known.

        Asking the encoding is much faster than looking through its offsets, which are made anew each time.
        """
        if self.encoding is None or not len(self):
            return None
        if self.encoding.token_to_chars(len(self) - 1)[1] <= place:
            return len(self)
        for ahead in range(NEAR):
            found = self.encoding.char_to_token(place + ahead)
            if found is not None:
                return int(found)
        return None

    @property
    def boundaries(self) -> NDArray[np.bool_]:
        """Whether a token begins a character; several tokens may share one."""
        starts = np.array([start for start, _ in self.offsets], dtype=np.int64)
        return np.concatenate([np.ones(min(1, len(starts)), dtype=bool), starts[1:] != starts[:-1]])


class Codec:
    """Tokenises rendered conversations, fenced ones and documents, with one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._plain: dict[str, list[int]] = {}

    @cached_property
    def _backend(self) -> Any:
        return self.tokenizer.backend_tokenizer

    @cached_property
    def _fences(self) -> Pattern[str]:
        return fence_pattern(self.tokenizer)

    def encode(self, texts: list[str]) -> list[Tokens]:
        """Tokenise texts as they are, nothing added, on all cores."""
        if not texts:
            return []
        self._settle()
        encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        return [Tokens(encoding.ids, encoding) for encoding in encodings]

    def encode_pieces(self, text: str, breaks: tuple[int, ...] = ()) -> Tokens:
        """Tokenise a fenced text; the fences vanish, but offsets count them. No token reaches across `breaks`.

        Raises Fault where the tokenizer makes a control token even of fenced text.
        """
        parts = list(pieces(text, self._fences, breaks))
        written = iter(self._behind([(piece, start == 0) for start, piece, as_text in parts if not as_text]))
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, piece, as_text in parts:
            if as_text:
                found = self._as_text(piece)
                ids += found
                offsets += [(start, start + len(piece))] * len(found)
            else:
                tokens, shift = next(written)
                ids += (token for token, _ in tokens)
                offsets += ((start + max(left - shift, 0), start + right - shift) for _, (left, right) in tokens)
        return Tokens(ids, offsets=offsets)

    def documents(self, texts: list[str]) -> list[Ids]:
        """Tokenise documents: with the tokenizer's own start token, never twice, and with the end token."""
        if not texts:
            return []
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        found = []
        for ids in self.tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]:
            once = ids[1:] if begin is not None and ids[:2] == [begin, begin] else ids
            closed = [*once, end] if end is not None and once[-1:] != [end] else once
            found.append(np.array(closed, dtype=np.int32))
        return found

    def _settle(self) -> None:
        """Have the tokenizer set its backend to tokenise whole texts, special tokens and all."""
        self.tokenizer("", add_special_tokens=False, padding=False, truncation=False, split_special_tokens=False)

    @cached_property
    def _newline(self) -> list[int]:
        ids: list[int] = self.encode(["\n"])[0].ids.tolist()
        return ids

    def _behind(self, parts: list[tuple[str, bool]]) -> list[tuple[list[tuple[int, tuple[int, int]]], int]]:
        """Tokenise pieces from the middle of a text: token and offsets, and by how much these are too large.

        A piece goes behind a newline, whose tokens are then dropped, because some tokenizers put a space before the
        start of a text. One that begins the text, or that melts with the newline, is tokenised alone.
        """
        width = len(self._newline)
        whole = self.encode(["\n" + piece for piece, _ in parts])
        melts = [
            first or part.ids[:width].tolist() != self._newline for part, (_, first) in zip(whole, parts, strict=True)
        ]
        alone = iter(self.encode([piece for (piece, _), melted in zip(parts, melts, strict=True) if melted]))
        found = []
        for tokens, melted in zip(whole, melts, strict=True):
            used, skipped = (next(alone), 0) if melted else (tokens, width)
            pairs = list(zip(used.ids[skipped:].tolist(), used.offsets[skipped:], strict=True))
            found.append((pairs, 0 if melted else 1))
        return found

    def _as_text(self, piece: str) -> list[int]:
        """Tokenise the text of a control token as plain text."""
        if piece not in self._plain:
            behind, width = self._without_added("\n" + piece), len(self._newline)
            found = behind[width:] if behind[:width] == self._newline else self._without_added(piece)
            if self.tokenizer.convert_tokens_to_ids(piece) in found:
                raise faults.forged(piece)
            self._plain[piece] = found
        return self._plain[piece]

    def _without_added(self, text: str) -> list[int]:
        """The backend's steps without its added tokens, special or not."""
        if self._backend.normalizer is not None:
            text = self._backend.normalizer.normalize_str(text)
        splits = [text]
        if self._backend.pre_tokenizer is not None:
            splits = [split for split, _ in self._backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for split in splits for token in self._backend.model.tokenize(split)]
