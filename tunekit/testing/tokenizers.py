"""What a patch of the tokenizer has to satisfy: it acts on this object alone, and says what it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..values import Report
from .plugins import PluginSuite
from .runs import run_context
from .tiny import tiny_tokenizer


class TokenizerPatchSuite(PluginSuite):
    """For plugins that change the tokenizer before data is prepared with it."""

    def tokenizer(self) -> Any:
        """What is patched: a fresh tiny tokenizer each time, unless the subclass has another."""
        return tiny_tokenizer()

    def patch_(self, tokenizer: Any) -> Report:
        """Patch the tokenizer in place and return the plugin's report."""
        context = run_context(self.make(), *self.companions)
        report: Report = context.calls.own("tunekit_patch_tokenizer", tokenizer=tokenizer, context=context)
        return report

    def test_it_changes_the_tokenizer(self) -> None:
        """Its template, its special tokens or its vocabulary."""
        tokenizer = self.tokenizer()
        self.patch_(tokenizer)
        assert state(tokenizer) != state(self.tokenizer()), "nothing has changed"

    def test_another_tokenizer_is_not_touched(self) -> None:
        """The object is patched, never the library's class."""
        other = self.tokenizer()
        before = state(other)
        self.patch_(self.tokenizer())
        assert state(other) == before

    def test_patching_twice_is_patching_once(self) -> None:
        """A tokenizer that was saved with a trained adapter is patched again when the run is opened."""
        once, twice = self.tokenizer(), self.tokenizer()
        self.patch_(once)
        self.patch_(twice)
        self.patch_(twice)
        assert state(once) == state(twice)

    def test_what_it_changes_is_saved(self, tmp_path: Path) -> None:
        """A tokenizer read back from a folder is the patched one."""
        from transformers import AutoTokenizer

        tokenizer = self.tokenizer()
        self.patch_(tokenizer)
        tokenizer.save_pretrained(str(tmp_path))
        again = AutoTokenizer.from_pretrained(str(tmp_path))
        assert state(again) == state(tokenizer)

    def test_the_report_says_in_one_line_what_was_done(self) -> None:
        """The summary goes to the record, for people."""
        summary = self.patch_(self.tokenizer()).summary
        assert summary.strip()
        assert "\n" not in summary


def state(tokenizer: Any) -> tuple[Any, ...]:
    """All that decides what a tokenizer makes of a conversation."""
    return tokenizer.chat_template, dict(tokenizer.special_tokens_map), tokenizer.get_vocab()
