"""The options that every training stage shares, grouped. Stages subclass `TrainConfig` and add their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from tunekit.plugin import PluginConfig
from tunekit.values import StageContext

Padding = Literal["auto", "never", "always"]
TooLong = Literal["cut", "drop", "split"]
Packing = Literal["none", "greedy", "best_fit"]
Thinking = Literal["keep", "last", "drop", "mask"]
LoraProduct = Literal["auto", "never"]
FrozenLayersMode = Literal["auto", "never"]
ScoredApart = Literal["auto", "never"]
Fit = Literal["auto", "always", "never"]
Shape = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "warmup_stable_decay",
    "reduce_lr_on_plateau",
]
Decay = Literal["cosine", "linear", "1-sqrt"]
CompileBackend = Literal["inductor", "aot_eager", "eager"]


class BatchConfig(PluginConfig):
    """How examples become batches."""

    rows: int = Field(
        default=4, ge=1, description="examples, or bins of packed ones, per micro-batch: what is in memory at once"
    )
    tokens: int | None = Field(
        default=None,
        ge=2,
        description="instead of rows: as many examples per micro-batch as fit in so many tokens, padding counted where "
        "the model needs it",
    )
    accumulation: int = Field(default=1, ge=1, description="micro-batches per optimiser step")
    max_length: int = Field(default=1024, ge=2, description="the most tokens of one sequence")
    too_long: TooLong = Field(
        default="cut",
        description="a longer one is cut (prompts in the middle, answers at the end), dropped, or split into several; "
        "each is counted and reported",
    )
    padding: Padding = Field(
        default="auto",
        description="auto: laid end to end without padding where the model can; never: refuse a model that cannot; "
        "always: padded",
    )
    packing: Packing = Field(
        default="none",
        description="fill bins of max_length tokens with whole examples, none of which sees another: greedy in random "
        "order, or best_fit, which wastes least",
    )
    share_prompts: bool = Field(
        default=True,
        description="compute the prompt that the sequences of one item share, a chosen and a rejected answer say, once",
    )
    by_length: bool = Field(default=False, description="put examples of similar length into one micro-batch")


class ComputeConfig(PluginConfig):
    """How the model is computed, for the same numbers up to rounding."""

    lora_product: LoraProduct = Field(
        default="auto",
        description="auto: a LoRA layer is one product, with a backward of its own, where that is exact; never: PEFT's",
    )
    frozen_layers: FrozenLayersMode = Field(
        default="auto",
        description="auto: layers below the first that trains are computed once for each example, where that is exact "
        "and examples come again; never: each time",
    )
    frozen_layers_gib: float = Field(
        default=8.0,
        gt=0,
        description="the most disk space, in GiB, that their hidden states may take in the run folder until the stage "
        "ends; where they need more they are computed each time",
    )
    scored_apart: ScoredApart = Field(
        default="auto",
        description="auto: sequences that a loss needs scores of and no gradient through run without one, in batches "
        "where that is cheaper than with the others; never: with the others",
    )
    chunked_head: Fit = Field(
        default="auto",
        description="run the output head, and make log-probabilities of its logits, for a part of the positions at a "
        "time: always, never, or auto, when the estimate of memory asks for it",
    )
    checkpointing: Fit = Field(
        default="auto",
        description="keep of each layer only what goes in, and compute the rest again in the backward: always, never, "
        "or auto, when the estimate of memory asks for it",
    )
    offload: Fit = Field(
        default="auto",
        description="keep what the backward needs in the memory of the host, of an accelerator only: always, never, "
        "or auto, when the estimate of memory asks for it",
    )
    compile: bool = Field(
        default=False,
        description="compile each block of the model with torch.compile; LoRA layers are then PEFT's own, attention "
        "without padding is left as it is",
    )
    compile_backend: CompileBackend = Field(
        default="inductor", description="what torch.compile compiles with; the last two trace only, to find faults"
    )
    deterministic: bool = Field(
        default=False, description="let PyTorch use deterministic algorithms only, and stop where there is none"
    )


class ScheduleConfig(PluginConfig):
    """How the learning rate moves. An option that the chosen shape does not use is refused."""

    shape: Shape = Field(default="linear", description="a schedule of transformers, by its name there")
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1, description="share of all steps with a rising learning rate")
    warmup_steps: int | None = Field(
        default=None, ge=0, description="the same in steps; set, it overrides warmup_ratio"
    )
    cycles: float | None = Field(
        default=None,
        gt=0,
        description="waves of a cosine, 0.5 being one fall (the default); with cosine_with_restarts how many falls, 1",
    )
    power: float = Field(default=1.0, gt=0, description="of polynomial: falls as (1 - share of steps done)^power")
    min_rate: float | None = Field(
        default=None,
        ge=0,
        description="the lowest learning rate, of polynomial, cosine_with_min_lr (which needs one), "
        "warmup_stable_decay and reduce_lr_on_plateau; unset: 0",
    )
    min_share: float | None = Field(
        default=None, ge=0, lt=1, description="the same as a share of learning_rate; give one of the two"
    )
    timescale: int | None = Field(
        default=None,
        ge=1,
        description="of inverse_sqrt, in steps: falls as (1 + steps after warm-up / timescale)^-0.5; unset: as many as "
        "warm up, 10000 without warm-up",
    )
    decay: Decay = Field(default="cosine", description="how warmup_stable_decay falls")
    decay_ratio: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share of all steps in which warmup_stable_decay falls; unset: what is left, else 0.2",
    )
    decay_steps: int | None = Field(default=None, ge=1, description="the same in steps; overrides decay_ratio")
    stable_ratio: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="share of all steps in which warmup_stable_decay stays at its highest; unset: what is left",
    )
    stable_steps: int | None = Field(default=None, ge=0, description="the same in steps; overrides stable_ratio")
    plateau_patience: int = Field(
        default=10, ge=0, description="of reduce_lr_on_plateau: evaluations without improvement that are let pass"
    )
    plateau_factor: float = Field(
        default=0.1, gt=0, lt=1, description="of reduce_lr_on_plateau: what the learning rate is then multiplied by"
    )
    plateau_threshold: float = Field(
        default=1e-4, ge=0, description="of reduce_lr_on_plateau: the least change that improves, a share of the best"
    )
    plateau_cooldown: int = Field(
        default=0, ge=0, description="of reduce_lr_on_plateau: evaluations after a reduction that do not count"
    )


class CheckpointConfig(PluginConfig):
    """When to save what is needed to resume."""

    every: int = Field(default=100, ge=0, description="optimiser steps between checkpoints; 0 writes none")
    keep: int = Field(default=2, ge=1, description="complete checkpoints kept; older ones are deleted")
    best: bool = Field(
        default=False,
        description="keep the weights of the best evaluation besides, and end the stage with them: see evaluate.metric",
    )


class EvaluateConfig(PluginConfig):
    """Which rows are held out, and when the model is measured on them."""

    share: float = Field(
        default=0.0, ge=0, lt=1, description="share of the rows that is held out for evaluation; 0: none"
    )
    every: int | None = Field(
        default=None, ge=1, description="optimiser steps between evaluations; unset: once per epoch"
    )
    every_ratio: float | None = Field(
        default=None, gt=0, le=1, description="the same as a share of all steps; give one of the two"
    )
    at_start: bool = Field(default=False, description="evaluate before the first step too")
    metric: str = Field(
        default="loss",
        min_length=1,
        description="the metric of an evaluation that checkpoint.best, early_stopping and reduce_lr_on_plateau go by",
    )
    higher_is_better: bool | None = Field(
        default=None, description="whether a higher metric is better; must be set for a metric other than the loss"
    )


class EarlyStoppingConfig(PluginConfig):
    """When to stop because nothing improves."""

    patience: int | None = Field(
        default=None,
        ge=1,
        description="evaluations in a row without improvement that end the stage; unset: none do",
    )
    improvement: float = Field(
        default=0.0, ge=0, description="the least change of evaluate.metric that counts, in its own unit"
    )


class LogConfig(PluginConfig):
    """How often to tell, and whom."""

    every: int = Field(default=1, ge=1, description="optimiser steps that one entry of the metrics averages over")
    trackers: tuple[str, ...] = Field(
        default=(),
        description="trackers by transformers' names for them: tensorboard, wandb, mlflow, trackio, swanlab and others",
    )


class TrainConfig(PluginConfig):
    """What every stage needs to know to train."""

    epochs: float = Field(default=1.0, gt=0, description="passes over the data")
    steps: int | None = Field(
        default=None, ge=1, description="stop after so many optimiser steps, whatever epochs says"
    )
    learning_rate: float = Field(default=2e-4, gt=0, description="the highest learning rate of the schedule")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay")
    seed: int | None = Field(
        default=None, ge=0, description="of this stage's order of data, split and dropout; unset: the recipe's"
    )
    max_grad_norm: float = Field(default=1.0, ge=0, description="gradients are scaled down to this norm; 0: never")
    batch: BatchConfig = Field(default=BatchConfig(), description="how examples become batches")
    compute: ComputeConfig = Field(default=ComputeConfig(), description="how the model is computed")
    schedule: ScheduleConfig = Field(default=ScheduleConfig(), description="how the learning rate moves")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="what is saved, and when")
    evaluate: EvaluateConfig = Field(default=EvaluateConfig(), description="what is held out and measured")
    early_stopping: EarlyStoppingConfig = Field(
        default=EarlyStoppingConfig(), description="when to stop because nothing improves"
    )
    log: LogConfig = Field(default=LogConfig(), description="how often to tell, and whom")

    def seeded(self, context: StageContext) -> StageContext:
        """The context with this stage's own seed, where it has one."""
        return context if self.seed is None else replace(context, seed=self.seed)


class ConversationConfig(TrainConfig):
    """What every stage that trains on conversations needs to know besides."""

    thinking: Thinking = Field(
        default="keep",
        description="what the assistant thinks before an answer: trained wherever the chat template shows it, in the "
        "last answer only, dropped, or shown without a loss",
    )
