"""The options of PPO, in groups: rollouts, rewards, the distance to the reference, and the losses."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunekit.plugin import PluginConfig
from tunekit_train import ConversationConfig

KlEstimator = Literal["k1", "k2", "k3"]
KlControl = Literal["fixed", "adaptive"]
ReferenceChoice = Literal["auto", "switch_off", "copied"]


class RolloutConfig(PluginConfig):
    """How answers are gathered, and how often each is learnt from."""

    prompts: int = Field(
        default=64, ge=1, description="answers gathered at a time; a multiple of batch.rows x batch.accumulation"
    )
    epochs: int = Field(default=4, ge=1, description="passes over the answers before new ones are gathered")
    batch: int = Field(default=16, ge=1, description="prompts answered together")
    max_new_tokens: int = Field(default=64, ge=1, description="the most tokens of an answer")
    min_new_tokens: int = Field(default=0, ge=0, description="tokens before an answer may end")
    temperature: float = Field(
        default=1.0, gt=0, description="logits are divided by it, in sampling and in every log-probability"
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="sample from the likeliest tokens that hold this much probability"
    )


class RewardConfig(PluginConfig):
    """What answers are worth. Plugins named in `use:` that value answers come on top."""

    adapter: str | None = Field(
        default=None, description="a trained reward adapter: its name in an earlier stage of the run, or its folder"
    )
    model: str | None = Field(default=None, description="the folder of a full reward model")
    url: str | None = Field(default=None, description="an HTTP endpoint that is posted answers and returns rewards")
    timeout: float = Field(default=30.0, gt=0, description="seconds to wait for the endpoint")
    retries: int = Field(default=3, ge=0, description="further attempts where the endpoint fails, each after a pause")
    weight: float = Field(default=1.0, description="what adapter, model and endpoint weigh in the sum of all rewards")
    scale: float = Field(default=1.0, gt=0, description="the sum of all rewards is multiplied by it")
    clip: float | None = Field(default=None, gt=0, description="and then held between minus and plus this")
    missing_end: float = Field(
        default=0.0, ge=0, description="taken off the reward of an answer that was cut at the length limit"
    )
    whiten: bool = Field(
        default=False, description="give the rewards of all tokens of a rollout, KL penalty included, variance 1"
    )


class KlConfig(PluginConfig):
    """How the policy is held near the reference: a penalty on each token, taken off its reward."""

    coefficient: float = Field(default=0.05, ge=0, description="weight of the penalty, at the start where adaptive")
    control: KlControl = Field(default="fixed", description="keep the coefficient, or move it towards the target")
    target: float = Field(default=6.0, gt=0, description="nats per answer that adaptive control aims at")
    horizon: int = Field(
        default=10_000,
        ge=1,
        description="answers over which adaptive control corrects; more than a fifth of rollout.prompts",
    )
    estimator: KlEstimator = Field(
        default="k1", description="of the divergence at a token: log ratio, half its square, or ratio - 1 - log ratio"
    )


class PpoConfig(ConversationConfig):
    """Options of PPO, besides those of every stage on conversations. `epochs` are passes over the prompts."""

    learning_rate: float = Field(default=5e-5, gt=0, description="the highest learning rate of the schedule")
    clip: float = Field(default=0.2, gt=0, description="how far a token's probability ratio may move from 1")
    value_clip: float = Field(default=0.2, gt=0, description="how far a value may move from the rollout's")
    value_coefficient: float = Field(default=0.1, ge=0, description="weight of the value loss")
    entropy_coefficient: float = Field(default=0.0, ge=0, description="weight of the entropy, which is raised")
    discount: float = Field(default=1.0, gt=0, le=1, description="what a reward is worth one token earlier (gamma)")
    trace: float = Field(default=0.95, ge=0, le=1, description="lambda of generalised advantage estimation")
    whiten_advantages: bool = Field(default=True, description="give the advantages of a rollout mean 0 and variance 1")
    reference: ReferenceChoice = Field(
        default="auto",
        description="the policy at the start of the stage, by its adapter switched off, or by a frozen copy of what "
        "trains; auto: switched off where that is verified, else a copy of the adapter",
    )
    rollout: RolloutConfig = Field(default=RolloutConfig(), description="how answers are gathered")
    reward: RewardConfig = Field(default=RewardConfig(), description="what answers are worth")
    kl: KlConfig = Field(default=KlConfig(), description="how the policy is held near the reference")
