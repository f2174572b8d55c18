"""A name for everything that tokens depend on beside the data."""

from __future__ import annotations

import hashlib
import json
import re
from importlib.metadata import version
from typing import Any

from tunekit.data import code_fingerprint

from .rules import Rules

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def fingerprint(tokenizer: Any, rules: Rules, tool_format: Any) -> str:
    """Hash tokenizer, template, special tokens, rules, tool format, and the code and libraries that use them."""
    parts = [
        code_fingerprint(__name__),
        [version(name) for name in ("tokenizers", "transformers", "jinja2")],
        repr(rules),
        type(tokenizer).__qualname__,
        _state(tokenizer),
        tokenizer.chat_template,
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        sorted(str(token) for token in tokenizer.all_special_tokens),
        tokenizer.chat_control_tokens,
        _described(tool_format),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _state(tokenizer: Any) -> Any:
    """The tokenizer's own state, without how it pads and truncates at the moment."""
    if not tokenizer.is_fast:
        return sorted(tokenizer.get_vocab().items())
    tokenizer("", padding=False, truncation=False)
    return tokenizer.backend_tokenizer.to_str()


def _described(tool_format: Any) -> Any:
    if tool_format is None:
        return None
    kind = type(tool_format)
    told = {name: repr(value) for name, value in vars(tool_format).items()} if hasattr(tool_format, "__dict__") else {}
    return [
        code_fingerprint(kind.__module__),
        kind.__module__,
        kind.__qualname__,
        _ADDRESS.sub("", repr(tool_format)),
        _ADDRESS.sub("", repr(sorted(told.items()))),
    ]
