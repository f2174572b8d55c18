"""The losses that need no reference, each a pure function on tensors of pairs; see `losses` for the letters."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(log odds(y_w) - log odds(y_l)), odds(y) = P / (1 - P), log P = logp / |y|, [pairs].

    ORPO: Monolithic Preference Optimization without Reference Model, arXiv:2403.07691, equation 7. Takes the mean
    log-probabilities per token.
    """
    return -logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def _log_odds(log_probability: Tensor) -> Tensor:
    """log(P / (1 - P)), exact for P near 0 and near 1; P = 1 counts as the last number before it."""
    smallest = torch.finfo(log_probability.dtype).tiny
    below = log_probability.clamp(max=-smallest)
    # log(1 - P) by whichever of the two forms loses nothing: arXiv has none, see Maechler, log1mexp (2012).
    near_one = torch.log(-torch.expm1(below.clamp(min=-1.0)))
    near_zero = torch.log1p(-torch.exp(below.clamp(max=-0.5)))
    return log_probability - torch.where(below > -0.6931, near_one, near_zero)
