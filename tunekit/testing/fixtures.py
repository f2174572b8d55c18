"""Fixtures for the tests of plugins that change a model; import those you use into your `conftest.py`.

from tunekit.testing.fixtures import bundle_of, context_of, ids, logits, train  # noqa: F401
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ..values import Context, Estimate, LoadRequest, ModelBundle, Precision
from .runs import calls_of, default_plugin, estimate_for, run_context
from .tiny import FP32, VOCABULARY, save_tiny_model, tiny_model


@pytest.fixture
def bundle_of() -> Callable[..., ModelBundle]:
    """A random two-layer Llama, the same every time; `tied` ties its head to its embedding."""

    def make(precision: Precision = FP32, tied: bool = False, **changes: Any) -> ModelBundle:
        model = tiny_model(dtype=precision.weights, tie_word_embeddings=tied)
        return ModelBundle(model, None, "tiny", precision, **changes)

    return make


@pytest.fixture
def context_of(tmp_path: Path) -> Callable[..., Context]:
    """The context of a run with these plugins."""

    def make(*plugins: Any, seed: int = 0, precision: Precision = FP32) -> Context:
        return run_context(*plugins, folder=tmp_path, seed=seed, precision=precision)

    return make


@pytest.fixture
def ids() -> Any:
    """int64[2 batch, 9 seq], the same every time."""
    import torch

    return torch.randint(0, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def train() -> Callable[..., list[float]]:
    """Train whatever requires a gradient on some ids, and give the losses."""
    import torch

    def steps_(model: Any, ids: Any, steps: int = 5, learning_rate: float = 1e-2) -> list[float]:
        model.train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
        losses = []
        for _ in range(steps):
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        model.eval()
        return losses

    return steps_


@pytest.fixture
def logits(ids: Any) -> Callable[[Any], Any]:
    """float32[batch seq vocab] of a model in evaluation mode."""
    import torch

    def compute(model: Any) -> Any:
        with torch.no_grad():
            return model.eval()(input_ids=ids).logits.float()

    return compute


@pytest.fixture
def estimate_with() -> Callable[..., Estimate]:
    """The estimate of these plugins for the tiny model, the loader's part filled in."""

    def make(*plugins: Any, precision: Precision = FP32, tied: bool = False) -> Estimate:
        return estimate_for(*plugins, precision=precision, tie_word_embeddings=tied)

    return make


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Make folders of a hub's cache, each for a model in a revision, to put files in; there is no network meanwhile."""
    import hashlib

    cache = tmp_path / "hub"
    for constants in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def make(name: str, revision: str = "main") -> Path:
        repository = cache / f"models--{name.replace('/', '--')}"
        commit = hashlib.sha1(revision.encode()).hexdigest()
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        return snapshot

    return make


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of pytest-xdist have in common, for what takes long to make; take a lock to make it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if hasattr(request.config, "workerinput") else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama on disk."""
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def load(folder: Path) -> Callable[..., ModelBundle]:
    """Load a checkpoint, that of `folder` or another `model`, as a run does with these plugins, patches included."""

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
