"""A tokenizer that knows the tokens of the stage's prompts, since TRL turns prompts into tokens itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from transformers import BatchEncoding

from tunekit_train.prompts import Prompts

APART = "\u200b"
"""Makes a text that reads like another one differ from it."""


class Known:
    """A copy of the model's tokenizer, and the prompts as texts: what it makes of these are the prompts' own tokens.

    They were written by tunekit's rules: cut where they are too long, tools told in the model's way, and with text that
    looks like a special token kept as text. A text alone would not lead back to them.
    """

    def __init__(self, prompts: Prompts, tokenizer: Any) -> None:
        self.texts: list[str] = []
        self._ids: dict[str, list[int]] = {}
        for at in range(len(prompts)):
            ids = list(map(int, prompts.asked(at).ids))
            text = tokenizer.decode(ids)
            while self._ids.setdefault(text, ids) != ids:
                text += APART
            self.texts.append(text)
        self.tokenizer = self._knowing(tokenizer)

    def _knowing(self, tokenizer: Any) -> Any:
        ids = self._ids

        class Knowing(type(tokenizer)):  # type: ignore[misc]
            """The tokenizer, but for the prompts."""

            def __call__(self, text: Any = None, **settings: Any) -> BatchEncoding:
                if isinstance(text, Sequence) and not isinstance(text, str) and all(each in ids for each in text):
                    return BatchEncoding({"input_ids": [list(ids[each]) for each in text]})
                made: BatchEncoding = super().__call__(text, **settings)
                return made

        Knowing.__name__ = type(tokenizer).__name__
        known = copy.deepcopy(tokenizer)
        known.__class__ = Knowing
        return known
