"""Prompts from examples: what the model is to answer, as TRL takes it, with all that a reward may want to know."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunekit.errors import DataError, Problem
from tunekit.values import Account, Example, Item, Message, Mixing, Prepared, Sample, StageContext, TokenSequence
from tunekit.values import Examples as Rows
from tunekit_train import Items

from .options import OnlineConfig

SANITISED = {"sanitize_control_tokens": True}
"""Text of the data that looks like a special token stays text."""


@dataclass(frozen=True)
class Prompted:
    """One prompt: as TRL takes it, a text or turns, and as rewards are told of it, without an answer."""

    given: str | list[dict[str, str]]
    sample: Sample


class Prompts(Items):
    """Prompts as a stage's data: each an item of its tokens, none of which has a loss."""

    def __init__(self, items: Iterable[tuple[Prompted, Item]], account: Account, mixing: Mixing) -> None:
        pairs = list(items)
        super().__init__((item for _, item in pairs), account, mixing)
        self.prompts = [prompt for prompt, _ in pairs]

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Changes with any prompt, with the tokens it becomes, and with what rewards are told of it."""
        told = hashlib.sha256()
        for prompt, item in zip(self.prompts, self, strict=True):
            columns = json.dumps(dict(prompt.sample.columns), sort_keys=True, default=str)
            told.update(repr((list(item.sequences[0].ids), prompt.sample.reference, columns)).encode())
        return told.hexdigest()


def prepare_prompts(data: Rows, tokenizer: Any, config: OnlineConfig, context: StageContext) -> Prepared:
    """Take a prompt from every example; those of more than `batch.max_length` tokens are dropped and counted."""
    settings = {**SANITISED, **chat_settings(config)}
    return Prompts(_items(data, tokenizer, config.batch.max_length, settings), data.account, data.mixing)


def chat_settings(config: OnlineConfig) -> Mapping[str, Any]:
    """What the recipe gives to the chat template."""
    given = config.trl.get("chat_template_kwargs")
    return {} if given is None else dict(given)


def _items(data: Rows, tokenizer: Any, limit: int, settings: Mapping[str, Any]) -> Iterator[tuple[Prompted, Item]]:
    for example in data:
        prompt = _prompted(example)
        source = data.account.source(example.source)
        if isinstance(prompt, Problem):
            data.account.leave_out(example.source, example.where, prompt.message, prompt.remedy, example.optional)
            continue
        ids = _tokens(prompt.given, example, tokenizer, settings)
        source.lengths[len(ids)] += 1
        if len(ids) > limit:
            source.dropped.add(example.where)
            continue
        source.sequences, source.tokens = source.sequences + 1, source.tokens + len(ids)
        yield prompt, Item((TokenSequence(ids, [0.0] * len(ids), example.row, example.where),))


def _prompted(example: Example) -> Prompted | Problem:
    """What is asked, and what the data answers: the last answer of a conversation is no part of the prompt."""
    if example.text is not None:
        return _of(example.text, (Message("user", example.text),), None, example)
    turns, reference = example.messages, None
    if example.kind == "preference":
        reference = example.chosen[-1].content if example.chosen else None
    elif turns and turns[-1].role == "assistant":
        reference = turns[-1].content if example.label is not False else None
        turns = turns[:-1]
    if not turns:
        return Problem("", "has nothing to answer", "write a turn of the user before the answer")
    if example.tools or any(turn.tool_calls or turn.images or turn.role == "tool" for turn in turns):
        return Problem("", "has tools or images, which TRL's trainer is not given here", "leave them out of the data")
    return _of([{"role": turn.role, "content": turn.content} for turn in turns], turns, reference, example)


def _of(given: Any, turns: tuple[Message, ...], reference: str | None, example: Example) -> Prompted:
    sample = Sample(turns, "", "end", reference, example.columns, example.row, example.where, example.source)
    return Prompted(given, sample)


def _tokens(given: Any, example: Example, tokenizer: Any, settings: Mapping[str, Any]) -> list[int]:
    """The very tokens that TRL makes of a prompt."""
    if isinstance(given, str):
        return list(tokenizer(text=given)["input_ids"])
    if tokenizer.chat_template is None:
        what = "is a conversation, and the tokenizer has no chat template"
        raise DataError([Problem(example.where, what, "name one: `use: {template: {name: chatml}}`")])
    made = tokenizer.apply_chat_template(
        [given], add_generation_prompt=True, tokenize=True, return_dict=True, **settings
    )
    return list(made["input_ids"][0])
