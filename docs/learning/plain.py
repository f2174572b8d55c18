"""A reward of one's own: plain words."""

from __future__ import annotations

import re
from collections.abc import Sequence

import tunekit as tk
from tunekit.values import Sample, StageContext


class PlainConfig(tk.PluginConfig):
    """No options."""


class Plain(tk.Plugin[PlainConfig]):
    """The share of an answer's words that have at most four letters; 0 where it says nothing."""

    @tk.hookimpl
    def tunekit_reward(self, samples: Sequence[Sample], context: StageContext) -> list[float]:
        """Between 0 and 1."""
        words = [re.findall(r"[A-Za-z]+", sample.answer) for sample in samples]
        return [sum(len(word) <= 4 for word in each) / max(1, len(each)) for each in words]
