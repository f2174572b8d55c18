"""Follow the rows of a batch while they grow: the text so far, where each ends and why, what may be shown already."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import StoppingCriteria

from tunekit.values import Answer

if TYPE_CHECKING:
    from torch import Tensor

UNFINISHED_CHARACTER = "\ufffd"
Finish = Literal["end", "stop", "length"]


class Row:
    """One answer while it is made."""

    def __init__(
        self, tokenizer: Any, limit: int, stop: Sequence[str], end_tokens: Collection[int], stop_tokens: Collection[int]
    ) -> None:
        self.tokenizer, self.limit = tokenizer, limit
        self.stop, self.end_tokens, self.stop_tokens = stop, end_tokens, stop_tokens
        self.tokens: list[int] = []
        self.finish: Finish | None = "length" if limit <= 0 else None

    def add(self, token: int) -> None:
        """Take the next token and find out whether the answer ends with it."""
        if token in self.stop_tokens or token in self.end_tokens:
            self.finish = "stop" if token in self.stop_tokens else "end"
            return
        self.tokens.append(token)
        if self.stop and self._stop_position(self._decode()) is not None:
            self.finish = "stop"
        elif len(self.tokens) >= self.limit:
            self.finish = "length"

    @property
    def text(self) -> str:
        """The answer so far, without the stop string and what came with it in its last token."""
        text = self._decode()
        return text[: self._stop_position(text)]

    @property
    def settled(self) -> str:
        """The part of the text that no further token can change or take back."""
        text = self.text
        if self.finish is not None:
            return text
        text = text.rstrip(UNFINISHED_CHARACTER)
        held = max((_overlap(text, stop) for stop in self.stop), default=0)
        return text[: len(text) - held]

    def answer(self) -> Answer:
        """The finished answer; its tokens do not count the end token."""
        assert self.finish is not None, "the row is still growing"
        return Answer(self.text, len(self.tokens), self.finish)

    def _decode(self) -> str:
        decoded: str = self.tokenizer.decode(self.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return decoded

    def _stop_position(self, text: str) -> int | None:
        """Where the first stop string begins, None where there is none."""
        return min((position for stop in self.stop if (position := text.find(stop)) >= 0), default=None)


class Follow(StoppingCriteria):
    """Tell `generate` which rows have ended. `watch` is called after each step; it returns True to give up."""

    def __init__(self, rows: Sequence[Row], watch: Callable[[], bool] | None = None) -> None:
        self.rows, self.watch = rows, watch

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Ids are int64 (batch, seq), the newest token last; returns bool (batch)."""
        for row, token in zip(self.rows, input_ids[:, -1].tolist(), strict=True):
            if row.finish is None:
                row.add(token)
        give_up = self.watch is not None and self.watch()
        done = [give_up or row.finish is not None for row in self.rows]
        return torch.tensor(done, device=input_ids.device)


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` could begin with."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
