"""What all tests of the repository share."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def what_is_imported_is_not_walked_over() -> None:
    """Leave out of each collection what is there by now: training runs collect, over all modules that are imported."""
    gc.collect()
    gc.freeze()
