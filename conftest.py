"""What all tests of the repository share."""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest

from tunekit.testing.options import shown_by


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that is the evidence of an option has to run: skipped by itself, or expected to fail, it shows nothing."""
    report = yield
    options = shown_by(getattr(item, "function", None))
    if report.skipped and options:
        report.outcome, report.longrepr = "failed", f"did not run, and is the evidence of {', '.join(options)}"
    return report


@pytest.fixture(scope="module", autouse=True)
def what_is_imported_is_not_walked_over() -> None:
    """Leave out of each collection what is there by now: training runs collect, over all modules that are imported."""
    gc.collect()
    gc.freeze()
