"""A tiny checkpoint, loaded through whatever a plugin asks of the loader."""

from __future__ import annotations

from tunekit.testing.fixtures import folder, load

__all__ = ["folder", "load"]
