"""f-divergences in place of the reverse KL: what DPO compares instead of log-ratios.

Beyond Reverse KL: Generalizing DPO with Diverse Divergence Constraints, arXiv:2309.16240: the reward of an answer is
beta f'(u) with u = policy / reference probability, up to a term that cancels between two answers of one prompt. So it
serves only losses of the difference.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .names import Divergence

LARGEST = 40.0
"""The largest exponent taken: exp and its square (`ipo`) stay within fp32. TRL takes 80, and none for forward_kl.

An answer that much less likely, by a factor of 1e17 for forward_kl, has no gradient.
"""


def slope(ratio: Tensor, divergence: Divergence, alpha: float) -> Tensor:
    """f'(u) at log u = ratio, up to a constant, [pairs].

    reverse_kl: log u. forward_kl: 1 - 1/u. js: log(2u / (1 + u)). alpha, 0 < alpha < 1: (1 - u^-alpha) / alpha, which
    goes to reverse_kl as alpha goes to 0 and to forward_kl as it goes to 1. TRL's coefficient is 1 - alpha.
    """
    if divergence == "reverse_kl":
        return ratio
    if divergence == "js":
        return math.log(2) + logsigmoid(ratio)
    power = 1.0 if divergence == "forward_kl" else alpha
    return -torch.expm1((-power * ratio).clamp(max=LARGEST)) / power
