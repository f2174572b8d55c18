"""How much the distance to the reference costs: always the same, or as much as keeps it near a target."""

from __future__ import annotations

from dataclasses import dataclass

from .options import KlConfig

LARGEST = 0.2
"""The largest relative error that one correction sees."""


@dataclass
class Control:
    """The coefficient of the KL penalty.

    Adaptive: beta <- beta (1 + e n / horizon), e = clip(KL / target - 1, -0.2, 0.2), after a rollout of n answers.
    Fine-Tuning Language Models from Human Preferences, arXiv:1909.08593, section 2.2.
    """

    options: KlConfig
    coefficient: float

    @classmethod
    def of(cls, options: KlConfig) -> Control:
        """Begin with the coefficient that the options give."""
        return cls(options, options.coefficient)

    def update_(self, divergence: float, answers: int) -> None:
        """Learn what the divergence of a rollout was, in nats per answer."""
        if self.options.control == "fixed":
            return
        error = min(max(divergence / self.options.target - 1, -LARGEST), LARGEST)
        self.coefficient *= 1 + error * answers / self.options.horizon
