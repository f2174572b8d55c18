"""The losses of direct preference optimisation, each a pure function on tensors of pairs.

In all of them y_w is the chosen answer and y_l the rejected one, [pairs] each; logp is a log-probability summed over
the answer, and ratio = logp under the policy - logp under the reference. Where a function takes `logits`, these are

    logits = beta (ratio_w - ratio_l) - margin

with f-divergences in place of the ratios where one is chosen (`divergences`), and the margin that the data gives, if it
does: -log sigmoid(logits) is then ODPO (Direct Preference Optimization with an Offset, arXiv:2402.10571).
Every function returns one loss per pair, [pairs], in the dtype it is given.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def sigmoid(logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - e) log sigmoid(logits) - e log sigmoid(-logits), e = label_smoothing.

    With e = 0: Direct Preference Optimization, arXiv:2305.18290, equation 7. With e > 0, the chance that a pair is
    the wrong way round: conservative DPO, Mitchell, A note on DPO with noisy preferences (2023).
    TRL's `sigmoid` has no label smoothing.
    """
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


def hinge(logits: Tensor) -> Tensor:
    """max(0, 1 - logits).

    SLiC-HF, arXiv:2305.10425, on the ratios to a reference as in RSO, arXiv:2309.06657.
    """
    return torch.relu(1 - logits)


def robust(logits: Tensor, flipped: float) -> Tensor:
    """(-(1 - e) log sigmoid(logits) + e log sigmoid(-logits)) / (1 - 2 e), e = flipped < 1/2.

    An estimate of the DPO loss without bias where a share e of the pairs is the wrong way round. Provably Robust DPO,
    arXiv:2403.00409.
    """
    return (-(1 - flipped) * logsigmoid(logits) + flipped * logsigmoid(-logits)) / (1 - 2 * flipped)


def ipo(mean_difference: Tensor, beta: float) -> Tensor:
    """(d - 1 / (2 beta))^2, d = ratio_w / |y_w| - ratio_l / |y_l|.

    A General Theoretical Paradigm to Understand Learning from Human Preferences, arXiv:2310.12036, equation 17, beta
    for its tau. The equation has summed log-probabilities; its authors used means over tokens, and so does TRL.
    """
    return (mean_difference - 1 / (2 * beta)) ** 2


def exo(logits: Tensor, label_smoothing: float) -> Tensor:
    """KL(p || q), p = (sigmoid(logits), sigmoid(-logits)), q = (1 - e, e), e = label_smoothing > 0.

    Towards Efficient Exact Optimization of Language Model Alignment, arXiv:2402.00856, equation 16; e is 1e-3 there.
    """
    chosen, rejected = logsigmoid(logits), logsigmoid(-logits)
    return chosen.exp() * (chosen - math.log1p(-label_smoothing)) + rejected.exp() * (
        rejected - math.log(label_smoothing)
    )


def discopop(logits: Tensor, temperature: float) -> Tensor:
    """(1 - m) (-log sigmoid(logits)) + m exp(-logits), m = sigmoid(logits / temperature).

    Discovering Preference Optimization Algorithms with and for Large Language Models, arXiv:2406.08414, equation 5 (the
    log-ratio modulated loss); temperature is 0.05 there. The second product is one exponential: its factors are 0 and
    infinite where an answer has become impossible. It is bounded for temperatures up to 1.
    """
    mixed = torch.sigmoid(logits / temperature)
    return (1 - mixed) * -logsigmoid(logits) + torch.exp(logsigmoid(logits / temperature) - logits)


def bco(chosen: Tensor, rejected: Tensor, shift: Tensor | float) -> Tensor:
    """-log sigmoid(r_w - d) - log sigmoid(d - r_l), r = beta ratio, d = shift.

    Binary Classifier Optimization, arXiv:2404.04656. The shift d is a running mean of the rewards of both
    answers, without gradient. TRL's `bco_pair` leaves it out: d = 0.
    """
    return -logsigmoid(chosen - shift) - logsigmoid(shift - rejected)


def nca(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(r_w) - 1/2 log sigmoid(-r_w) - 1/2 log sigmoid(-r_l), r = beta ratio.

    Noise Contrastive Alignment, arXiv:2402.05369, for pairs.
    """
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def sppo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """(ratio_w - 1 / (2 beta))^2 + (ratio_l + 1 / (2 beta))^2, on r = beta ratio.

    Self-Play Preference Optimization, arXiv:2405.00675, equation 4.7 with the probability that y_w wins taken as 1,
    and beta = 1 / eta.
    """
    return ((chosen - 0.5) ** 2 + (rejected + 0.5) ** 2) / beta**2


def apo_zero(chosen: Tensor, rejected: Tensor) -> Tensor:
    """1 - sigmoid(r_w) + sigmoid(r_l), r = beta ratio: for chosen answers that are better than the model's own.

    Anchored Preference Optimization, arXiv:2408.06266, equation 7.
    """
    return torch.sigmoid(-chosen) + torch.sigmoid(rejected)


def apo_down(chosen: Tensor, rejected: Tensor) -> Tensor:
    """sigmoid(r_w) + 1 - sigmoid(r_w - r_l), r = beta ratio: for chosen answers that are worse than the model's own.

    Anchored Preference Optimization, arXiv:2408.06266, equation 8.
    """
    return torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)


def aot(above: Tensor, below: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """The sigmoid loss on beta (sort(above) - sort(below)): the whole batch is to lie above, quantile by quantile.

    Distributional Preference Alignment via Optimal Transport, arXiv:2406.05882. Paired: above is
    logp_w - logp_l under the policy, below the same under the reference. Unpaired: above is ratio_w, below ratio_l. The
    entries are those of quantiles, not of pairs.
    """
    return sigmoid(beta * (above.sort().values - below.sort().values), label_smoothing)
