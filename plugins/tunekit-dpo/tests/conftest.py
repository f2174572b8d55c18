"""Token scores made by hand, and TRL's own loss on the very same tokens."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tunekit.values import Item, TokenSequence
from tunekit_train import Batch, TokenScores


@dataclass
class Tokens:
    """Log-probabilities of tokens, [2 pairs, longest], chosen and rejected in turn; `mask` says what is real."""

    policy: Tensor
    reference: Tensor
    mask: Tensor
    margins: tuple[float | None, ...]

    @property
    def pairs(self) -> int:
        return len(self.mask) // 2

    def scores(self, log_probs: Tensor) -> TokenScores:
        owners = torch.arange(len(self.mask))[:, None].expand_as(self.mask)[self.mask]
        flat = log_probs[self.mask]
        return TokenScores(flat, torch.ones_like(flat), owners)

    @property
    def batch(self) -> Batch:
        """What the same answers are as items: a prompt of two tokens before each."""
        lengths = self.mask.sum(1).tolist()
        sequences = [TokenSequence([3] * (2 + n), [0.0] * 2 + [1.0] * n, 1, "a test") for n in lengths]
        pairs = zip(sequences[::2], sequences[1::2], self.margins, strict=True)
        return Batch(tuple(Item((chosen, rejected), margin=margin) for chosen, rejected, margin in pairs))


@pytest.fixture
def tokens() -> Tokens:
    """Five pairs of answers of 1 to 7 tokens."""
    return make_tokens(5)


def make_tokens(pairs: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tokens:
    dice = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 8, (2 * pairs,), generator=dice)
    mask = torch.arange(7) < lengths[:, None]
    reference = -3 * torch.rand(2 * pairs, 7, generator=dice, dtype=dtype)
    policy = reference + 0.8 * torch.randn(2 * pairs, 7, generator=dice, dtype=dtype)
    return Tokens(policy * mask, reference * mask, mask, (None,) * pairs)


@pytest.fixture
def trl_loss() -> Callable[..., float]:
    """TRL's DPOTrainer on given tokens: `trl_loss(tokens, names, **options)`."""
    return _trl_loss


def _trl_loss(tokens: Tokens, names: dict[str, float], **options: Any) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import DPOTrainer

    order = [*range(0, 2 * tokens.pairs, 2), *range(1, 2 * tokens.pairs, 2)]  # TRL has all chosen first
    policy, reference, mask = (each[order] for each in (tokens.policy, tokens.reference, tokens.mask))
    numbers = torch.zeros_like(policy)
    outputs = SimpleNamespace(log_probs=policy, entropy=numbers, mean_logits=numbers, is_top1=numbers.bool())
    references = (_desensitised(reference, mask, options.get("ld_alpha"))).chunk(2)
    inputs = {
        "input_ids": torch.zeros(len(mask), 8, dtype=torch.long),
        "attention_mask": torch.ones(len(mask), 8),
        "completion_mask": torch.cat([torch.zeros(len(mask), 1, dtype=torch.long), mask.long()], 1),
        "ref_chosen_logps": references[0],
        "ref_rejected_logps": references[1],
    }
    loss = DPOTrainer._compute_loss(_trainer(names, options), lambda **_: outputs, inputs, False)
    return float(loss)


def _trainer(names: dict[str, float], options: dict[str, Any]) -> Any:
    """As much of a DPOTrainer as its loss reads."""
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather=_same, gather_for_metrics=_same)
    defaults = {
        "model": SimpleNamespace(training=False),
        "accelerator": accelerator,
        "aux_loss_enabled": False,
        "precompute_ref_logps": True,
        "use_weighting": False,
        "loss_types": list(names),
        "loss_weights": list(names.values()),
        "beta": 0.1,
        "label_smoothing": 0.0,
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "args": SimpleNamespace(discopop_tau=0.05),
        "_metrics": {"eval": defaultdict(list)},
        "_total_train_tokens": 0,
    }
    return SimpleNamespace(**{**defaults, **options})


def _same(value: Tensor) -> Tensor:
    return value


def _desensitised(reference: Tensor, mask: Tensor, alpha: float | None) -> Tensor:
    """The reference's sums, which TRL expects ready-made: token by token."""
    half, sums = len(mask) // 2, []
    for row in range(len(mask)):
        shared = int(min(mask[row % half].sum(), mask[row % half + half].sum()))
        factors = [1.0 if place < shared or alpha is None else alpha for place in range(mask.shape[1])]
        sums.append(sum(float(value) * factor for value, factor in zip(reference[row], factors, strict=True)))
    return torch.tensor(sums, dtype=reference.dtype)
