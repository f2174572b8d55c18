"""Prompts become tokens: what comes before the answer of an example, written ready to be answered."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from tunekit.errors import DataError
from tunekit.values import Example, Message, ToolFormat

from . import faults
from .fences import Fences, fenced
from .fitting import Fit, Strip
from .pictures import image_reader
from .rules import Rules
from .script import Messages, Script
from .talks import Talks
from .template import Template
from .tokens import Codec, Ids


@dataclass(frozen=True)
class Written:
    """A prompt: its messages as the data has them, its token ids, and the answer that the data gives to it."""

    messages: Messages
    ids: Ids
    reference: str | None
    length: int

    @property
    def fit(self) -> Fit:
        """The same as what became of an example: one sequence in which nothing is trained."""
        return Fit([Strip(self.ids, np.zeros(len(self.ids), np.float32), self.length)])


class Prompter:
    """Writes prompts with the chat template of a tokenizer, as whoever talks to the model later writes them.

    Special tokens inside a message stay plain text. `rules.max_length` is the most tokens of a prompt: of a longer
    conversation the oldest turns leave (`too_long: cut`; the system turn and the last one stay), or it is dropped.
    """

    def __init__(self, tokenizer: Any, rules: Rules, tool_format: ToolFormat | None = None) -> None:
        # What the assistant thought before is never the last answer here: that is still to come.
        self.rules = replace(rules, thinking="drop") if rules.thinking == "last" else rules
        self.tokenizer, self.tool_format = tokenizer, tool_format
        self._codec = Codec(tokenizer)

    def write(self, example: Example) -> Written | Fit:
        """The prompt of an example; a Fit where it is dropped. Raises Fault where there is none or it cannot fit."""
        if example.text is not None:
            return self._document(example.text)
        prompt, answer = split_answer(example)
        reference = None if answer is None or example.label is False else answer.content
        ids = whole = self._encode(example, prompt)
        limit, turns = self.rules.max_length, prompt
        while limit is not None and len(ids) > limit:
            if self.rules.too_long == "drop":
                return Fit(dropped=True, whole=(len(whole),))
            turns = _without_oldest(turns)
            if not turns:
                raise faults.cut_away(limit, len(whole))
            ids = self._encode(example, turns)
        return Written(turns, ids, reference, len(whole))

    def _document(self, text: str) -> Written | Fit:
        """A text to be continued: its tokens as they are, without an end."""
        ids = np.array(self.tokenizer(text, return_attention_mask=False, verbose=False)["input_ids"], np.int32)
        start, limit = self.tokenizer.bos_token_id, self.rules.max_length
        if start is not None and ids[:2].tolist() == [start, start]:
            ids = ids[1:]
        if not len(ids):
            raise faults.nothing_asked()
        if limit is not None and len(ids) > limit:
            if self.rules.too_long == "drop":
                return Fit(dropped=True, whole=(len(ids),))
            return Written((Message("user", text),), ids[-limit:], None, len(ids))
        return Written((Message("user", text),), ids, None, len(ids))

    def _encode(self, example: Example, prompt: Messages) -> Ids:
        template, talks = self._with_tools if example.tools else self._plain
        messages, tools = talks.ready(example, prompt)
        script = Script(messages, [dict(tool) for tool in tools] or None, template)
        text = script.render(prompt=True)
        ids = (self._codec.encode_pieces(text) if fenced(text) else self._codec.encode([text])[0]).ids
        start = self.tokenizer.bos_token_id
        if start is not None and ids[:2].tolist() == [start, start]:
            raise faults.doubled_start(self.tokenizer.bos_token)
        return ids

    @cached_property
    def _plain(self) -> tuple[Template, Talks]:
        return self._writing(with_tools=False)

    @cached_property
    def _with_tools(self) -> tuple[Template, Talks]:
        return self._writing(with_tools=True)

    def _writing(self, with_tools: bool) -> tuple[Template, Talks]:
        if not self.tokenizer.chat_template:
            raise DataError([faults.no_template()])
        template = Template(self.tokenizer, with_tools)
        fences = Fences(self.tokenizer, template.facts.literals)
        reader = image_reader(self.tokenizer)
        marker = reader.marker if reader else None
        return template, Talks(self.rules, fences, self.tool_format, template.writes_tools, marker)


def split_answer(example: Example) -> tuple[Messages, Message | None]:
    """The prompt of an example, and the answer that the data gives to it, if any. Raises Fault.

    Of a conversation everything before its last answer, and all of it where it ends without one; of a preference its
    prompt, and the chosen answer.
    """
    messages = example.messages
    if example.chosen or example.rejected:
        answer = next((turn for turn in reversed(example.chosen) if turn.role == "assistant"), None)
    elif messages and messages[-1].role == "assistant":
        messages, answer = messages[:-1], messages[-1]
    else:
        answer = None
    if not messages:
        raise faults.nothing_asked()
    return messages, answer


def _without_oldest(messages: Messages) -> Messages:
    """The messages without their oldest exchange; system turns stay. Nothing where only the last one would be left out.

    What is left begins with a turn of the user.
    """
    system = tuple(message for message in messages if message.role == "system")
    spoken = [message for message in messages if message.role != "system"]
    begins = [at for at, message in enumerate(spoken) if at and message.role == "user"]
    return (*system, *spoken[begins[0] :]) if begins else ()
