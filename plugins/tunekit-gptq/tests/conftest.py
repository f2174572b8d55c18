"""A folder in which quantised copies are kept for all tests."""

from __future__ import annotations

from tunekit.testing.fixtures import shared
from tunekit_gptq.testing import cache, kept_copies

__all__ = ["cache", "kept_copies", "shared"]
