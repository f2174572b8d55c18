"""The objectives that need no reference policy: ORPO, SimPO and CPO."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tunekit_train import Batch, Need, Objective, Provided, Sums, TokenLogProbs

from .losses import sigmoid
from .odds import odds_ratio
from .pairs import Answers, metric_sums, preference_metrics


@dataclass
class ReferenceFree(Objective):
    """The mean over pairs of a preference loss, plus sft_weight times the mean -log p of the chosen answer's tokens.

    Each answer's mean counts alike in the second term, as in the formulas of the papers; TRL takes the mean over the
    tokens of a batch.
    """

    beta: float
    sft_weight: float

    needs: ClassVar[tuple[Need[Any], ...]] = (TokenLogProbs(),)

    @abstractmethod
    def rewards(self, answers: Answers) -> tuple[Tensor, Tensor]:
        """What stands for the reward of the chosen and the rejected answers, [pairs] each."""

    @abstractmethod
    def preference(self, answers: Answers) -> Tensor:
        """The preference loss, [pairs]."""

    def weight(self, batch: Batch) -> float:
        """Pairs."""
        return len(batch.items)

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        """The loss summed over pairs, with both its parts, rewards, margin, accuracy and log-probabilities."""
        count = len(batch.items)
        answers = Answers.of(provided[TokenLogProbs()], count)
        preference, sft = self.preference(answers), -answers.chosen_mean
        metrics = {
            **preference_metrics(*self.rewards(answers)),
            "log_prob_chosen": answers.chosen,
            "log_prob_rejected": answers.rejected,
            "preference_loss": preference,
            "sft_loss": sft,
        }
        loss = preference + self.sft_weight * sft if self.sft_weight else preference
        return Sums(loss.sum(), metric_sums(metrics, count))


@dataclass
class OddsRatio(ReferenceFree):
    """ORPO, arXiv:2403.07691: -log p(y_w) / |y_w| - beta log sigmoid(log odds(y_w) - log odds(y_l)); beta for lambda.

    TRL takes the first term over the tokens of prompt and answer; the paper and we, over those of the answer.
    """

    sft_weight: float = 1.0

    def rewards(self, answers: Answers) -> tuple[Tensor, Tensor]:
        """beta times the mean log-probability per token."""
        return self.beta * answers.chosen_mean, self.beta * answers.rejected_mean

    def preference(self, answers: Answers) -> Tensor:
        """-beta log sigmoid(difference of the log odds)."""
        return self.beta * odds_ratio(answers.chosen_mean, answers.rejected_mean)


@dataclass
class Simple(ReferenceFree):
    """SimPO, arXiv:2405.14734: -log sigmoid(beta log p(y_w) / |y_w| - beta log p(y_l) / |y_l| - gamma).

    TRL's `simpo_gamma` is the same gamma. With `sft_weight` above 0 it is CPO-SimPO.
    """

    gamma: float

    def rewards(self, answers: Answers) -> tuple[Tensor, Tensor]:
        """beta times the mean log-probability per token."""
        return self.beta * answers.chosen_mean, self.beta * answers.rejected_mean

    def preference(self, answers: Answers) -> Tensor:
        """-log sigmoid(difference of the rewards - gamma)."""
        chosen, rejected = self.rewards(answers)
        return sigmoid(chosen - rejected - self.gamma)


@dataclass
class Contrastive(ReferenceFree):
    """CPO, arXiv:2401.08417: -log sigmoid(beta log p(y_w) - beta log p(y_l)), and the chosen answer's -log p.

    The paper's second term is the sum over the answer's tokens; its authors' code, TRL and we take the mean, so that
    long answers do not drown the preference.
    """

    label_smoothing: float

    def rewards(self, answers: Answers) -> tuple[Tensor, Tensor]:
        """beta log p."""
        return self.beta * answers.chosen, self.beta * answers.rejected

    def preference(self, answers: Answers) -> Tensor:
        """The sigmoid loss on the difference of the rewards."""
        chosen, rejected = self.rewards(answers)
        return sigmoid(chosen - rejected, self.label_smoothing)
