"""Keep libraries from drawing progress bars and logging advice while tunekit uses them, and restore that afterwards."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the block: no progress bars of transformers, nothing logged below errors, no warnings."""
    from transformers.utils import logging as transformers_logging

    reports: Any = transformers_logging
    bars, threshold = reports.is_progress_bar_enabled(), logging.root.manager.disable
    reports.disable_progress_bar()
    logging.disable(max(threshold, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(threshold)
        if bars:
            reports.enable_progress_bar()
