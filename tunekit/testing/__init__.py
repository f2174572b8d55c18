"""The conformance kit for plugin authors: suites to subclass, and tiny models and contexts to test with.

    from tunekit.testing import AdapterSuite
    from tunekit_lora import Lora

    class TestLora(AdapterSuite):
        plugin = Lora(rank=4)

A suite's test may be replaced only by one that is marked `@pytest.mark.xfail(reason="...")`.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    *(
        f"{__name__}.{name}"
        for name in (
            "adapters",
            "backends",
            "exports",
            "formats",
            "loaders",
            "optimizers",
            "patches",
            "plugins",
            "precisions",
            "quantizers",
            "readers",
            "rewards",
            "stages",
            "tokenizers",
            "toolformats",
        )
    )
)

from .adapters import AdapterSuite  # noqa: E402
from .backends import BackendSuite  # noqa: E402
from .data import conversations, examples_of, labelled, preferences, prepared_items, rows_of  # noqa: E402
from .exports import ExportSuite  # noqa: E402
from .formats import FormatSuite  # noqa: E402
from .loaders import LoaderSuite  # noqa: E402
from .optimizers import OptimizerSuite  # noqa: E402
from .patches import Effect, PatchSuite  # noqa: E402
from .plugins import PluginSuite  # noqa: E402
from .precisions import PrecisionSuite  # noqa: E402
from .quantizers import QuantizerSuite  # noqa: E402
from .readers import ReaderSuite  # noqa: E402
from .rewards import RewardSuite  # noqa: E402
from .runs import (  # noqa: E402
    calls_of,
    default_plugin,
    estimate_for,
    fake_machine,
    plan_for,
    planned,
    run_context,
    stage_context,
)
from .stages import StageSuite  # noqa: E402
from .tiny import FP32, MIXED, save_tiny_model, tiny_bundle, tiny_model, tiny_tokenizer  # noqa: E402
from .tokenizers import TokenizerPatchSuite  # noqa: E402
from .toolformats import ToolFormatSuite  # noqa: E402

__all__ = [
    "FP32",
    "MIXED",
    "AdapterSuite",
    "BackendSuite",
    "Effect",
    "ExportSuite",
    "FormatSuite",
    "LoaderSuite",
    "OptimizerSuite",
    "PatchSuite",
    "PluginSuite",
    "PrecisionSuite",
    "QuantizerSuite",
    "ReaderSuite",
    "RewardSuite",
    "StageSuite",
    "TokenizerPatchSuite",
    "ToolFormatSuite",
    "calls_of",
    "conversations",
    "default_plugin",
    "estimate_for",
    "examples_of",
    "fake_machine",
    "labelled",
    "plan_for",
    "planned",
    "preferences",
    "prepared_items",
    "rows_of",
    "run_context",
    "save_tiny_model",
    "stage_context",
    "tiny_bundle",
    "tiny_model",
    "tiny_tokenizer",
]
