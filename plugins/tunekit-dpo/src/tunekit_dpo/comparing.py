"""Policy and reference side by side, and the loss of each name on them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from . import losses
from .divergences import slope
from .names import Divergence, LossName
from .pairs import Answers


@dataclass(frozen=True)
class Settings:
    """The numbers of the losses; the options of `dpo` say what each is."""

    beta: float = 0.1
    label_smoothing: float = 0.0
    divergence: Divergence = "reverse_kl"
    divergence_alpha: float = 0.5
    discopop_temperature: float = 0.05


@dataclass(frozen=True)
class Compared:
    """Two answers per pair under policy and reference; `margin` is what the data gives, [pairs]."""

    policy: Answers
    reference: Answers
    margin: Tensor
    settings: Settings

    @property
    def chosen_ratio(self) -> Tensor:
        """Log-ratio of the chosen answers, [pairs]."""
        return self.policy.chosen - self.reference.chosen

    @property
    def rejected_ratio(self) -> Tensor:
        """Log-ratio of the rejected answers, [pairs]."""
        return self.policy.rejected - self.reference.rejected

    @property
    def chosen_reward(self) -> Tensor:
        """beta ratio, [pairs]."""
        return self.settings.beta * self.chosen_ratio

    @property
    def rejected_reward(self) -> Tensor:
        """beta ratio, [pairs]."""
        return self.settings.beta * self.rejected_ratio

    @property
    def logits(self) -> Tensor:
        """What the losses of the difference take, [pairs]."""
        return self.settings.beta * (self._chosen_slope - self._rejected_slope) - self.margin

    @property
    def mean_difference(self) -> Tensor:
        """The difference of the two, each per token of its answer, [pairs]."""
        return self._chosen_slope / self.policy.chosen_size - self._rejected_slope / self.policy.rejected_size

    @property
    def _chosen_slope(self) -> Tensor:
        return slope(self.chosen_ratio, self.settings.divergence, self.settings.divergence_alpha)

    @property
    def _rejected_slope(self) -> Tensor:
        return slope(self.rejected_ratio, self.settings.divergence, self.settings.divergence_alpha)


def pair_losses(name: LossName, pairs: Compared, shift: Tensor | float = 0.0) -> Tensor:
    """The loss of this name, [pairs]. `shift` is that of `bco`."""
    settings = pairs.settings
    beta, smoothing = settings.beta, settings.label_smoothing
    match name:
        case "sigmoid":
            return losses.sigmoid(pairs.logits, smoothing)
        case "sigmoid_norm":
            return losses.sigmoid(beta * pairs.mean_difference - pairs.margin, smoothing)
        case "hinge":
            return losses.hinge(pairs.logits)
        case "ipo":
            return losses.ipo(pairs.mean_difference, beta)
        case "robust":
            return losses.robust(pairs.logits, smoothing)
        case "exo":
            return losses.exo(pairs.logits, smoothing)
        case "discopop":
            return losses.discopop(pairs.logits, settings.discopop_temperature)
        case "bco":
            return losses.bco(pairs.chosen_reward, pairs.rejected_reward, shift)
        case "nca":
            return losses.nca(pairs.chosen_reward, pairs.rejected_reward)
        case "sppo":
            return losses.sppo(pairs.chosen_reward, pairs.rejected_reward, beta)
        case "apo_zero":
            return losses.apo_zero(pairs.chosen_reward, pairs.rejected_reward)
        case "apo_down":
            return losses.apo_down(pairs.chosen_reward, pairs.rejected_reward)
        case "aot":
            policy = pairs.policy.chosen - pairs.policy.rejected
            reference = pairs.reference.chosen - pairs.reference.rejected
            return losses.aot(policy, reference, beta, smoothing)
        case "aot_unpaired":
            return losses.aot(pairs.chosen_ratio, pairs.rejected_ratio, beta, smoothing)
