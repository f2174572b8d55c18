"""The options of the four stages, and which of them go together."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from tunekit_train import ConversationConfig

from .names import OF_DIFFERENCE, OFFSET, SMOOTHED, Divergence, LossName

BETA = "how strongly the policy is held to the reference: rewards are beta times log-ratios"
SFT = "weight of the mean -log p of the chosen answer's tokens, added to the loss"


class DpoConfig(ConversationConfig):
    """Options of DPO and its family, besides those of every stage on conversations."""

    learning_rate: float = Field(default=1e-5, gt=0, description="the highest learning rate of the schedule")
    beta: float = Field(default=0.1, gt=0, description=BETA)
    loss: LossName | dict[LossName, float] = Field(
        default="sigmoid", description="the loss by its name, or several with their weights"
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="the chance that a pair is the wrong way round: conservative DPO"
    )
    divergence: Divergence = Field(default="reverse_kl", description="the f-divergence to the reference")
    divergence_alpha: float = Field(default=0.5, gt=0, lt=1, description="alpha of `divergence: alpha`")
    tail_weight: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="weight of the tokens by which an answer is longer than the other: alpha of LD-DPO; 1: all alike",
    )
    margin_weight: float = Field(
        default=1.0, ge=0, description="how much of the margin that the data gives a reward difference must exceed"
    )
    sft_weight: float = Field(default=0.0, ge=0, description=SFT)
    discopop_temperature: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="temperature of `loss: discopop`, at which it turns from one form to the other",
    )
    bco_decay: float = Field(
        default=0.99, ge=0, lt=1, description="decay of the running mean of rewards of `loss: bco`, per step"
    )

    @property
    def losses(self) -> dict[LossName, float]:
        """The losses with their weights."""
        return dict(self.loss) if isinstance(self.loss, dict) else {self.loss: 1.0}

    @model_validator(mode="after")
    def _go_together(self) -> DpoConfig:
        """Refuse options that no chosen loss takes, and values that a chosen loss cannot."""
        names, given = set(self.losses), self.model_fields_set
        if not names or not all(weight > 0 for weight in self.losses.values()):
            raise ValueError("loss: name at least one loss, each with a weight above 0")
        if "exo" in names and not self.label_smoothing:
            raise ValueError("label_smoothing is 0, and loss exo needs it above 0; its paper uses 1e-3")
        if self.divergence != "reverse_kl" and not names <= OF_DIFFERENCE:
            others = ", ".join(sorted(names - OF_DIFFERENCE))
            raise ValueError(
                f"divergence {self.divergence} does not go with loss {others}, which is not one of a difference of "
                f"rewards; use reverse_kl, or losses among {', '.join(sorted(OF_DIFFERENCE))}"
            )
        takers: dict[str, tuple[bool, str]] = {
            "label_smoothing": (bool(names & SMOOTHED), f"loss {', '.join(sorted(SMOOTHED))}"),
            "margin_weight": (bool(names & OFFSET), f"loss {', '.join(sorted(OFFSET))}"),
            "divergence_alpha": (self.divergence == "alpha", "divergence alpha"),
            "discopop_temperature": ("discopop" in names, "loss discopop"),
            "bco_decay": ("bco" in names, "loss bco"),
        }
        for option, (taken, taker) in takers.items():
            default: Any = type(self).model_fields[option].default
            if option in given and not taken and getattr(self, option) != default:
                raise ValueError(f"{option} acts only with {taker}; leave it out")
        return self


class OrpoConfig(ConversationConfig):
    """Options of ORPO, besides those of every stage on conversations."""

    learning_rate: float = Field(default=1e-5, gt=0, description="the highest learning rate of the schedule")
    beta: float = Field(default=0.1, gt=0, description="weight of the odds-ratio loss: lambda of the paper")


class SimpoConfig(ConversationConfig):
    """Options of SimPO, besides those of every stage on conversations."""

    learning_rate: float = Field(default=1e-5, gt=0, description="the highest learning rate of the schedule")
    beta: float = Field(default=2.0, gt=0, description="rewards are beta times the mean log-probability per token")
    gamma: float = Field(default=1.0, ge=0, description="the margin by which the chosen answer's reward must lead")
    sft_weight: float = Field(default=0.0, ge=0, description=SFT)


class CpoConfig(ConversationConfig):
    """Options of CPO, besides those of every stage on conversations."""

    learning_rate: float = Field(default=1e-5, gt=0, description="the highest learning rate of the schedule")
    beta: float = Field(default=0.1, gt=0, description="rewards are beta times log-probabilities")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="the chance that a pair is the wrong way round"
    )
    sft_weight: float = Field(default=1.0, ge=0, description=SFT)
