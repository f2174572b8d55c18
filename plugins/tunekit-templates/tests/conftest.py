"""Tokenizers that know chosen tokens, and distributions that offer things by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from tunekit.testing import run_context, tiny_tokenizer
from tunekit_templates import ChatTemplate
from tunekit_templates.entries import TEMPLATES


def make_tokenizer(*tokens: str, eos: str | None = "</s>", bos: str | None = None, begins: bool = False) -> Any:
    """A tokenizer of any text that keeps these tokens whole; `begins`: it puts its start token before every text."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in (*tokens, eos, bos) if token])
    tokenizer.eos_token, tokenizer.bos_token, tokenizer.chat_template = eos, bos, None
    if begins:
        tokenizer.add_bos_token = True
    return tokenizer


@pytest.fixture
def tokenizer_with() -> Callable[..., Any]:
    """Make a tokenizer that knows these tokens."""
    return make_tokenizer


@pytest.fixture
def fitting() -> Callable[..., Any]:
    """Make a tokenizer that a named template fits, with the template on it."""

    def make(name: str, **options: Any) -> Any:
        tokenizer = make_tokenizer(*TEMPLATES.load(name).markers, **options)
        plugin = ChatTemplate(name=name)
        plugin.tunekit_patch_tokenizer(tokenizer=tokenizer, context=run_context(plugin))
        return tokenizer

    return make


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Install a distribution of one module: `offer("fake-a", "tunekit.templates", {"a": "fake_a:A"}, code)`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def write(name: str, group: str, points: dict[str, str], code: str = "") -> None:
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            "\n".join([f"[{group}]", *(f"{key} = {value}" for key, value in points.items())])
        )
        (tmp_path / f"{name.replace('-', '_')}.py").write_text(code)

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("fake_"):
            del sys.modules[name]
