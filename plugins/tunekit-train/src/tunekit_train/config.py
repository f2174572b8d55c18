"""The options that every training stage shares, grouped. Stages subclass `TrainConfig` and add their own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunekit.plugin import PluginConfig

Padding = Literal["auto", "never", "always"]
TooLong = Literal["cut", "drop", "split"]
Packing = Literal["none", "greedy", "best_fit"]
Thinking = Literal["keep", "last", "drop", "mask"]
LoraProduct = Literal["auto", "never"]
FrozenLayersMode = Literal["auto", "never"]
Shape = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
]


class BatchConfig(PluginConfig):
    """How examples become batches."""

    rows: int = Field(
        default=4, ge=1, description="examples, or bins of packed ones, per micro-batch: what is in memory at once"
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


class ScheduleConfig(PluginConfig):
    """How the learning rate moves."""

    shape: Shape = Field(default="linear", description="a schedule of transformers, by its name there")
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1, description="share of all steps with a rising learning rate")
    warmup_steps: int | None = Field(
        default=None, ge=0, description="the same in steps; set, it overrides warmup_ratio"
    )


class CheckpointConfig(PluginConfig):
    """When to save what is needed to resume."""

    every: int = Field(default=100, ge=0, description="optimiser steps between checkpoints; 0 writes none")
    keep: int = Field(default=2, ge=1, description="complete checkpoints kept; older ones are deleted")


class EvaluateConfig(PluginConfig):
    """Which rows are held out, and when the model is measured on them."""

    share: float = Field(
        default=0.0, ge=0, lt=1, description="share of the rows that is held out for evaluation; 0: none"
    )
    every: int | None = Field(
        default=None, ge=1, description="optimiser steps between evaluations; unset: once per epoch"
    )


class LogConfig(PluginConfig):
    """How often to tell, and whom."""

    every: int = Field(default=1, ge=1, description="optimiser steps that one entry of the metrics averages over")
    trackers: tuple[str, ...] = Field(
        default=(), description="trackers by transformers' names for them, such as tensorboard"
    )


class TrainConfig(PluginConfig):
    """What every stage needs to know to train."""

    epochs: float = Field(default=1.0, gt=0, description="passes over the data")
    steps: int | None = Field(
        default=None, ge=1, description="stop after so many optimiser steps, whatever epochs says"
    )
    learning_rate: float = Field(default=2e-4, gt=0, description="the highest learning rate of the schedule")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay")
    max_grad_norm: float = Field(default=1.0, ge=0, description="gradients are scaled down to this norm; 0: never")
    batch: BatchConfig = Field(default=BatchConfig(), description="how examples become batches")
    compute: ComputeConfig = Field(default=ComputeConfig(), description="how the model is computed")
    schedule: ScheduleConfig = Field(default=ScheduleConfig(), description="how the learning rate moves")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="what is saved, and when")
    evaluate: EvaluateConfig = Field(default=EvaluateConfig(), description="what is held out and measured")
    log: LogConfig = Field(default=LogConfig(), description="how often to tell, and whom")


class ConversationConfig(TrainConfig):
    """What every stage that trains on conversations needs to know besides."""

    thinking: Thinking = Field(
        default="keep",
        description="what the assistant thinks before an answer: trained wherever the chat template shows it, in the "
        "last answer only, dropped, or shown without a loss",
    )
