"""A tiny model and a run's context around any plugins, from the kit."""

from __future__ import annotations

from tunekit.testing.fixtures import estimate_with

__all__ = ["estimate_with"]
