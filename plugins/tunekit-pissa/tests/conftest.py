"""A tiny model and a run's context around any plugins, from the kit."""

from __future__ import annotations

from tunekit.testing.fixtures import bundle_of, context_of, estimate_with, ids, logits, train

__all__ = ["bundle_of", "context_of", "estimate_with", "ids", "logits", "train"]
