"""Fake distributions on disk, and plugins made for the core's own tests: no torch anywhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

FakeDistribution = Callable[..., Path]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path for fake distributions; what they import is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if name.startswith("fake_"):
            del sys.modules[name]


@pytest.fixture
def distribution(site: Path) -> FakeDistribution:
    """Write a distribution with one module: `distribution("fake-a", {"a": "fake_a:A"}, code)`."""

    def write(name: str, plugins: dict[str, str], code: str, version: str = "1.0", group: str = "tunekit") -> Path:
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        points = "\n".join(f"{key} = {value}" for key, value in plugins.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{points}\n")
        (site / f"{name.replace('-', '_')}.py").write_text(dedent(code))
        return site

    return write


HEADER = """
from pydantic import Field
from tunekit import Plugin, PluginConfig, hookimpl
from tunekit.values import *
"""

WORLD = (
    HEADER
    + '''
import json
from itertools import islice
from pathlib import Path

class Nothing(PluginConfig):
    pass

class Precise(Plugin[Nothing]):
    """Always float32."""
    @hookimpl
    def tunekit_precision(self, machine: Machine) -> Precision:
        return Precision("cpu", "float32", "float32", "float32", "the tests say so")

class Reader(Plugin[Nothing]):
    """Rows given in Python, or one JSON list."""
    @hookimpl
    def tunekit_read_data(self, source: Source) -> Rows:
        if source.rows is None:
            rows = [json.loads(line) for line in Path(source.path).read_text().splitlines()][: source.limit]
        else:
            rows = list(islice(source.rows() if callable(source.rows) else source.rows, source.limit))
        def read():
            for number, values in enumerate(rows, 1):
                yield Row(number, f"{source.name}, row {number}", values)
        return Rows(source, tuple(rows[0]) if rows else (), read, str(len(rows)))

class Lines(Plugin[Nothing]):
    """Rows with a `text` column."""
    @hookimpl
    def tunekit_format_data(self, rows: Rows):
        if "text" not in rows.columns:
            return None
        return (Example(row.number, row.where, text=row.values["text"]) if row.values["text"]
                else BadRow(row.number, row.where, "the text is empty", "write something") for row in rows.read())

class Quiet(Plugin[Nothing]):
    """A format that knows nothing."""
    @hookimpl
    def tunekit_format_data(self, rows: Rows):
        return None

class LoaderOptions(PluginConfig):
    fail: bool = Field(False, description="fail while loading")

class Loader(Plugin[LoaderOptions]):
    """A model that is a list of what happened to it."""
    @hookimpl
    def tunekit_load_tokenizer(self, request: LoadRequest, context: Context):
        return ["tokenizer"]
    @hookimpl
    def tunekit_load_model(self, request: LoadRequest, context: Context) -> ModelBundle:
        if self.config.fail:
            raise OSError("the disk is on fire")
        return ModelBundle([f"loaded {request.model}", dict(request.arguments)], request.tokenizer, request.model,
                           request.precision)
    @hookimpl
    def tunekit_infer_backend(self, bundle: ModelBundle, context: Context) -> Backend:
        return Echo(bundle)

class Echo:
    def __init__(self, bundle): self.bundle = bundle
    def generate(self, prompts, settings): return [Answer(prompt[-1].content[::-1], 1, "end") for prompt in prompts]
    def stream(self, prompt, settings): yield prompt[-1].content[::-1]
    def score(self, texts): return [TextScore(-1.0, 2) for _ in texts]

class Optimizer(Plugin[Nothing]):
    """An optimiser by name."""
    @hookimpl
    def tunekit_optimizer(self, bundle: ModelBundle, named_parameters: list, settings: OptimizerSettings,
                          context: StageContext):
        return "run"

class Items(list):
    def __init__(self, items, account):
        super().__init__(items)
        self.account, self.size = account, len(self)

class StageOptions(PluginConfig):
    steps: int = Field(3, ge=1, description="how many steps")
    stop_at: int = Field(0, description="stop there, as a user would")

class Steps(Plugin[StageOptions]):
    """A stage that counts."""
    @hookimpl
    def tunekit_prepare_data(self, data: Examples, tokenizer, context: StageContext) -> Prepared:
        return Items([Item((TokenSequence([ord(letter) for letter in each.text], [1.0] * len(each.text), each.row,
                                          each.where),)) for each in data], data.account)
    @hookimpl
    def tunekit_train_stage(self, bundle: ModelBundle, data: Prepared, context: StageContext) -> StageResult:
        done = context.folder / "done"
        first = int(done.read_text()) if context.resume and done.exists() else 0
        context.emit(Event("started", context.name, first, self.config.steps))
        for step in range(first + 1, self.config.steps + 1):
            context.emit(Event("step", context.name, step, self.config.steps, {"loss": 1 / step}))
            done.write_text(str(step))
            if step == self.config.stop_at and not context.resume:
                raise KeyboardInterrupt
        optimizer = context.calls.own("tunekit_optimizer", bundle=bundle, named_parameters=[],
                                      settings=OptimizerSettings(1.0), context=context)
        (context.folder / "adapter").mkdir(exist_ok=True)
        return StageResult(bundle.with_model([*bundle.model, f"trained with {optimizer}"]),
                           {"loss": 1 / self.config.steps, "peak_memory_bytes": 100.0},
                           artefacts=(Artefact("adapter", context.folder / "adapter"),))

class Both(Plugin[Nothing]):
    """Estimates a little."""
    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        from dataclasses import replace
        return replace(estimate, parameters=10, trainable=1, memory={"weights": 110})
'''
)

WORLD_PLUGINS = {
    "precision": "Precise",
    "files": "Reader",
    "text": "Lines",
    "alpaca": "Quiet",
    "sharegpt": "Quiet",
    "openai": "Quiet",
    "preference": "Quiet",
    "labelled": "Quiet",
    "prompt": "Quiet",
    "transformers": "Loader",
    "adamw": "Optimizer",
    "steps": "Steps",
    "sizes": "Both",
}


@pytest.fixture
def world(distribution: FakeDistribution, site: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDistribution:
    """A complete set of fake default plugins, hiding the installed ones; add more with the returned function."""
    from tunekit.catalog import Catalog

    discover = Catalog.discover.__func__  # type: ignore[attr-defined]

    def only_fake(cls: type[Catalog], path: list[str] | None = None, group: str = "tunekit") -> Catalog:
        found: Catalog = discover(cls, [str(site)], group)
        return found

    monkeypatch.setattr(Catalog, "discover", classmethod(only_fake))
    names = {key: f"fake_world:{value}" for key, value in WORLD_PLUGINS.items()}
    distribution("fake-world", names, WORLD)
    return distribution
