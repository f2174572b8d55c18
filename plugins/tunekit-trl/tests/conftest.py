"""Rewards made in tests, and TRL imported once, its warnings aside."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import trl  # noqa: F401
