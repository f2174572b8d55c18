"""TRL's own loss on given rewards."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture
def trl_loss() -> Callable[..., float]:
    """TRL's RewardTrainer: `trl_loss(chosen, rejected, margin, centring)`."""
    return _trl_loss


def _trl_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None, centring: float | None = None) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import RewardTrainer

    outputs = SimpleNamespace(logits=torch.cat([chosen, rejected])[:, None])
    inputs: dict[str, Any] = {} if margin is None else {"margin": margin}
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(gather=_same, gather_for_metrics=_same),
        args=SimpleNamespace(center_rewards_coefficient=centring),
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    return float(RewardTrainer.compute_loss(trainer, lambda **_: outputs, inputs))


def _same(value: Tensor) -> Tensor:
    return value
