"""Options of the two stages, under the names that TRL gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, FiniteFloat

from tunekit_train import BatchConfig, TrainConfig

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"]
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
"""Loss types whose ratios are clipped between 1 - epsilon and 1 + epsilon_high."""


class AnswersConfig(BatchConfig):
    """How answers become batches."""

    rows: int = Field(default=8, ge=1, description="answers per micro-batch: what is in memory at once")
    max_length: int = Field(default=1024, ge=2, description="the most tokens of a prompt")


class OnlineConfig(TrainConfig):
    """What both need to know to learn from the model's own answers."""

    learning_rate: float = Field(default=1e-6, gt=0, description="the highest learning rate of the schedule")
    batch: AnswersConfig = Field(default=AnswersConfig(), description="how answers become batches")
    num_generations_eval: int | None = Field(
        default=None, ge=1, description="answers to each prompt in evaluations; unset: num_generations"
    )
    max_completion_length: int = Field(default=512, ge=1, description="the most tokens of an answer")
    temperature: float = Field(default=1.0, gt=0, description="of sampling, and of the log-probabilities")
    top_p: float = Field(default=1.0, gt=0, le=1, description="sample from the likeliest tokens of so much probability")
    top_k: int = Field(default=0, ge=0, description="sample from so many of the likeliest tokens; 0: all")
    min_p: float | None = Field(
        default=None, ge=0, le=1, description="sample no token less likely than so much of the likeliest one"
    )
    repetition_penalty: float = Field(
        default=1.0, gt=0, description="what was said before becomes less likely above 1, likelier below"
    )
    steps_per_generation: int | None = Field(
        default=None,
        ge=1,
        description="micro-batches that are generated at once and then trained one by one; unset: batch.accumulation",
    )
    num_iterations: int = Field(default=1, ge=1, description="passes over the answers before new ones are generated")
    epsilon: float = Field(default=0.2, gt=0, description="ratios are clipped below 1 - epsilon")
    epsilon_high: float | None = Field(
        default=None,
        gt=0,
        description="ratios are clipped above 1 + epsilon_high (with cispo: above epsilon_high); unset: epsilon",
    )
    mask_truncated_completions: bool = Field(
        default=False, description="leave answers that the length limit ended out of the loss"
    )
    disable_dropout: bool = Field(default=False, description="train without the model's and the adapter's dropout")
    reward_weights: Mapping[str, FiniteFloat] = Field(
        default={},
        description="weights of rewards by the names of their plugins, besides those that the plugins have themselves; "
        "not named: 1",
    )
    trl: Mapping[str, Any] = Field(
        default={}, description="further options of the installed TRL's config class, by their names there"
    )

    @property
    def micro_batches(self) -> int:
        """Micro-batches of answers that are generated at once."""
        return self.steps_per_generation or self.batch.accumulation

    @property
    def uses(self) -> int:
        """Micro-batches trained on before new answers are generated."""
        return self.micro_batches * self.num_iterations


class GrpoConfig(OnlineConfig):
    """Options of GRPO, besides those of every stage. Defaults are TRL's."""

    num_generations: int = Field(default=8, ge=2, description="answers to each prompt: a group")
    beta: float = Field(default=0.0, ge=0, description="weight of the KL divergence from the start of the stage")
    loss_type: LossType = Field(default="dapo", description="how the losses of tokens become one; see the README")
    scale_rewards: Literal["group", "batch", "none"] = Field(
        default="group", description="divide advantages by the standard deviation of the group, of the batch, or not"
    )
    importance_sampling_level: Literal["token", "sequence"] = Field(
        default="token", description="ratios of tokens, or of whole answers as GSPO has them"
    )
    delta: float | None = Field(
        default=None, gt=0, description="clip ratios above this before the minimum is taken: two-sided clipping"
    )
    entropy_coef: float = Field(default=0.0, ge=0, description="weight of a bonus for entropy, nats per token")
    top_entropy_quantile: float = Field(
        default=1.0, ge=0, le=1, description="train on this share of the tokens, those of highest entropy"
    )
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = Field(
        default="sum_then_normalize", description="add rewards up and scale the sum, or scale each and add them up"
    )


class RlooConfig(OnlineConfig):
    """Options of RLOO, besides those of every stage. Defaults are TRL's."""

    num_generations: int = Field(default=2, ge=2, description="answers to each prompt: each is judged by the others")
    beta: float = Field(
        default=0.05, ge=0, description="how much of the KL divergence from the start of the stage rewards lose"
    )
    normalize_advantages: bool = Field(
        default=False, description="give the advantages of a generation batch mean 0 and standard deviation 1"
    )
    reward_clip_range: tuple[FiniteFloat, FiniteFloat] | None = Field(
        default=None, description="rewards are clipped to [lowest, highest] before the KL divergence is taken off"
    )
