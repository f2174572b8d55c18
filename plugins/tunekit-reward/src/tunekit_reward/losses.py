"""The loss of a reward model, a pure function on tensors of pairs."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(
    chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0, label_smoothing: float = 0.0
) -> Tensor:
    """-(1 - e) log sigmoid(d) - e log sigmoid(-d), d = r_w - r_l - margin, e = label_smoothing; [pairs].

    r_w and r_l are the rewards of the chosen and the rejected answer. Training language models to follow instructions
    with human feedback, arXiv:2203.02155, equation 1; the margin is that of Llama 2, arXiv:2307.09288, equation 2. TRL
    has no label smoothing here.
    """
    lead = chosen - rejected - margin
    return -(1 - label_smoothing) * logsigmoid(lead) - label_smoothing * logsigmoid(-lead)


def off_centre(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(r_w + r_l)^2, [pairs]: small where the rewards of a pair lie around 0.

    Only differences of rewards are learnt otherwise, and their level drifts. Helping or Herding? Reward Model Ensembles
    Mitigate but do not Eliminate Reward Hacking, arXiv:2312.09244.
    """
    return (chosen + rejected) ** 2
