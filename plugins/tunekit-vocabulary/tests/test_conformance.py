"""New tokens satisfy what every patch has to, of the tokenizer and of the model."""

from __future__ import annotations

from typing import Any

from tunekit.testing import PatchSuite, TokenizerPatchSuite, tiny_bundle
from tunekit.testing.runs import run_context
from tunekit.values import ModelBundle
from tunekit_lora import Lora
from tunekit_vocabulary import Vocabulary


def named() -> Vocabulary:
    return Vocabulary(special_tokens=["<|plan|>"], tokens=["tunekit"])


class TestTokens(TokenizerPatchSuite):
    plugin = named()
    companions = (Lora(),)


class TestRows(PatchSuite):
    plugin = named()
    companions = (Lora(),)
    changes = frozenset({"parameters", "evaluation", "training", "gradients"})

    def bundle(self) -> ModelBundle:
        """With the tokenizer that the plugin has patched before, as in a run."""
        bundle: Any = tiny_bundle()
        named().tunekit_patch_tokenizer(bundle.tokenizer, run_context(named()))
        return bundle
