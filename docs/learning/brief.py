"""A reward of one's own: answers that end by themselves, and soon."""

from __future__ import annotations

from collections.abc import Sequence

import tunekit as tk
from tunekit.values import Sample, StageContext


class BriefConfig(tk.PluginConfig):
    """No options."""


class Brief(tk.Plugin[BriefConfig]):
    """1 for an answer that ends within the limit, 0 for one that has to be cut."""

    @tk.hookimpl
    def tunekit_reward(self, samples: Sequence[Sample], context: StageContext) -> list[float]:
        """Whether each ended."""
        return [float(sample.finish == "end") for sample in samples]
