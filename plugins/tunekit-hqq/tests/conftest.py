"""A tiny checkpoint, loaded through whatever a plugin asks of the loader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tunekit.testing import FP32, calls_of, default_plugin, run_context, save_tiny_model
from tunekit.values import LoadRequest, ModelBundle, Precision

Load = Callable[..., ModelBundle]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama on disk."""
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def load(folder: Path) -> Load:
    """Load a checkpoint as a run does with these plugins, patches included."""

    def make(*plugins: Any, precision: Precision = FP32, model: Path = folder) -> ModelBundle:
        everyone = (*plugins, default_plugin("tunekit_load_model"))
        calls, request = calls_of(*everyone), LoadRequest(str(model), precision)
        if calls.owner("tunekit_quantize") is not None:
            request = replace(request, quantization=calls.own("tunekit_quantize", request=request))
        context = run_context(*everyone, precision=precision)
        bundle: ModelBundle = calls.own("tunekit_load_model", request=request, context=context)
        for _ in calls.each("tunekit_patch", bundle=bundle):
            pass  # a patch changes the model in place
        return bundle

    return make
