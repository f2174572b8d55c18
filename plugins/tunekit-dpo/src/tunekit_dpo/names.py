"""The names of losses and divergences, and which options each loss takes."""

from __future__ import annotations

from typing import Literal

LossName = Literal[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "robust",
    "exo",
    "discopop",
    "bco",
    "nca",
    "sppo",
    "apo_zero",
    "apo_down",
    "aot",
    "aot_unpaired",
]
Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]

OF_DIFFERENCE: frozenset[LossName] = frozenset({"sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo", "discopop"})
"""Losses of the difference of two rewards only, in which the unknown term of an f-divergence cancels."""
SMOOTHED: frozenset[LossName] = frozenset({"sigmoid", "sigmoid_norm", "robust", "exo", "aot", "aot_unpaired"})
"""Losses that take `label_smoothing`."""
OFFSET: frozenset[LossName] = OF_DIFFERENCE - {"ipo"}
"""Losses that take the margin of the data."""
COUPLED: frozenset[LossName] = frozenset({"aot", "aot_unpaired"})
"""Losses whose terms depend on the other pairs of the batch."""
