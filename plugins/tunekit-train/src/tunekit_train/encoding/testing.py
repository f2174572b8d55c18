"""For tests of what encodes, and of chat templates: small tokenizers, and what an item trains, as text."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from typing import Any

from tunekit.errors import DataError
from tunekit.values import Account, Example, Item, Message, TokenSequence, ToolFormat

from .encoder import Encoder
from .rules import Rules

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CONTROL = re.compile(
    r"<[|\uff5c][^<>\n' ]*?[|\uff5c]>|<\|\w+>|<\w+\|>|</?s>|<(?:start|end)_of_turn>|\[/?INST\]|<\|?turn\|?>|\[EOS\]"
)


def byte_tokenizer(template: str | None = CHATML, special: Iterable[str] = SPECIAL) -> Any:
    """A tokenizer with one token for each byte, as GPT-2's alphabet writes them, and one for each special token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return fast_tokenizer(backend, template, special)


def fast_tokenizer(backend: Any, template: str | None, special: Iterable[str] = SPECIAL) -> Any:
    """A transformers tokenizer around a backend, with `<s>` and `</s>` as start and end tokens."""
    from transformers import PreTrainedTokenizerFast

    made: Any = PreTrainedTokenizerFast
    tokenizer = made(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(dict.fromkeys(special))})
    tokenizer.chat_template = template
    return tokenizer


def with_template(tokenizer: Any, template: str | None) -> Any:
    """The same tokenizer with another chat template."""
    changed = copy.copy(tokenizer)
    changed.chat_template = template
    return changed


def control_tokens(template: str) -> list[str]:
    """What looks like a control token in the source of a template."""
    return sorted(set(_CONTROL.findall(template)))


def talk(*turns: tuple[str, str] | Message, row: int = 1, **values: Any) -> Example:
    """A conversation of (role, content) pairs or messages."""
    messages = tuple(turn if isinstance(turn, Message) else Message(*turn) for turn in turns)  # type: ignore[arg-type]
    return Example(row, f"talk.json, row {row}", messages, **values)


def dicts(messages: Iterable[Message]) -> list[dict[str, str]]:
    """Plain messages as `apply_chat_template` takes them."""
    return [{"role": message.role, "content": message.content} for message in messages]


def encode(
    example: Example, tokenizer: Any, tool_format: ToolFormat | None = None, **rules: Any
) -> tuple[list[Item], Account]:
    """The items of one example, and the account of it."""
    account = Account()
    account.source(example.source).rows += 1
    (items,) = Encoder(tokenizer, Rules(**rules), tool_format).encode([example], account)
    return items, account


def sequence(example: Example, tokenizer: Any, tool_format: ToolFormat | None = None, **rules: Any) -> TokenSequence:
    """The one sequence of an example. Raises DataError where it cannot be trained on."""
    items, account = encode(example, tokenizer, tool_format, **rules)
    if account.problems:
        raise DataError(account.problems)
    (item,) = items
    (only,) = item.sequences
    return only


def trained(tokens: TokenSequence, tokenizer: Any) -> list[str]:
    """The texts of the runs of trained tokens."""
    runs: list[list[int]] = []
    previous = 0.0
    for token, weight in zip(tokens.ids, tokens.weights, strict=True):
        if weight:
            runs.append([int(token)]) if not previous else runs[-1].append(int(token))
        previous = weight
    return [tokenizer.decode(run) for run in runs]
