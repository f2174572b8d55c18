"""Every option of every stage has a test that shows it acting: no option without one, and no evidence for none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tunekit.catalog import Catalog
from tunekit.plugin import Plugin
from tunekit.testing.options import evidence_in, options_with_owners

PLUGINS = Path(__file__).resolve().parent.parent / "plugins"


@cache
def stages() -> dict[str, type[Plugin[Any]]]:
    """The stages of this repository, by name."""
    ours, catalog = {path.name for path in PLUGINS.iterdir()}, Catalog.discover()
    rows = [row for row in catalog.listing() if row.distribution in ours and "tunekit_train_stage" in row.hooks]
    return {row.name: catalog.load(row.name) for row in rows}


def evidence_of(package: str) -> dict[str, list[str]]:
    """What the tests of a distribution show, by option."""
    return dict(_evidence_of(package))


@cache
def _evidence_of(package: str) -> dict[str, list[str]]:
    return evidence_in(PLUGINS / package.replace("_", "-") / "tests")


@pytest.mark.parametrize("stage", sorted(stages()))
def test_every_option_of_a_stage_has_evidence_that_training_changes(stage: str) -> None:
    plugin = stages()[stage]
    options = options_with_owners(plugin)
    shown = {package: evidence_of(package) for _, package in options}
    missing = [
        f"{package}: {option}"
        for option, package in options
        if not {option, f"{plugin.__name__}:{option}"} & shown[package].keys()
    ]
    assert len(options) > 30, "the walk does not reach the shared groups"
    assert not missing, f"no test marked with @shows, and no EVIDENCE, of {missing}"


def test_there_is_no_evidence_for_what_is_no_option() -> None:
    walked = [
        (name, package)
        for plugin in stages().values()
        for option, package in options_with_owners(plugin)
        for name in (option, f"{plugin.__name__}:{option}")
    ]
    for package in {package for _, package in walked}:
        known = {option for option, owner in walked if owner == package}
        known |= {option for plugin in optimizers(package) for option in plugin.config_type().model_fields}
        assert not evidence_of(package).keys() - known


def optimizers(package: str) -> list[type[Plugin[Any]]]:
    """What else a distribution of stages has options for."""
    catalog = Catalog.discover()
    name = package.replace("_", "-")
    return [catalog.load(row.name) for row in catalog.listing() if row.distribution == name]


def test_an_option_that_nothing_shows_is_found(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        '@shows("rank", "batch.rows")\ndef test_one():\n    pass\n\n@shows("lost")\ndef helper():\n    pass\n'
        'EVIDENCE = {"beta": test_one}\nOTHER = {"gamma": test_one}\n'
        '@evidence(Dpo, "loss")\ndef losses():\n    pass\n'
    )
    found = evidence_in(tmp_path)
    assert found == {"rank": ["test_some.py::test_one"], "batch.rows": ["test_some.py::test_one"],
                     "beta": ["test_some.py::test_one"], "Dpo:loss": ["test_some.py::line 10"]}  # fmt: skip


NO_EVIDENCE = """
import pytest
from tunekit.testing.options import shows

@shows("rank")
@pytest.mark.skip(reason="too slow")
def test_skipped(): ...

@shows("rank", "alpha")
@pytest.mark.xfail(reason="known")
def test_expected_to_fail(): assert False

@pytest.mark.skip(reason="shows nothing")
def test_other(): ...
"""


def test_evidence_that_does_not_run_fails(tmp_path: Path) -> None:
    shutil.copy(PLUGINS.parent / "conftest.py", tmp_path)
    (tmp_path / "test_some.py").write_text(NO_EVIDENCE)
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    ).stdout  # fmt: skip
    assert "did not run, and is the evidence of rank\n" in told
    assert "did not run, and is the evidence of rank, alpha" in told
    assert "1 failed, 1 skipped, 1 error" in told
