"""Rewards that a tiny random model can learn, and the same training twice: by a stage, and by TRL alone."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.testing import FP32, conversations, stage_context, tiny_model, tiny_tokenizer
from tunekit.values import Event, Mixing, ModelBundle, Sample, StageContext, StageResult
from tunekit_lora import Lora
from tunekit_train import AdamW

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import trl

Weights = dict[str, Tensor]


class Nothing(PluginConfig):
    """No options."""


def letters(answer: str) -> float:
    """The share of letters."""
    return sum(each.isascii() and each.isalpha() for each in answer) / (len(answer) or 1)


class Letters(Plugin[Nothing]):
    """Rewards letters."""

    @hookimpl
    def tunekit_reward(self, samples: Sequence[Sample], context: StageContext) -> list[float]:
        return [letters(each.answer) for each in samples]


class Brief(Plugin[Nothing]):
    """Rewards answers of few characters."""

    @hookimpl
    def tunekit_reward(self, samples: Sequence[Sample], context: StageContext) -> list[float]:
        return [-0.1 * len(each.answer) for each in samples]


class Done(NamedTuple):
    """What a stage has left."""

    result: StageResult
    events: list[Event]
    weights: Weights

    def told(self, name: str, kind: str = "step") -> list[float]:
        return [event.metrics[name] for event in self.events if event.kind == kind and name in event.metrics]


class Setting:
    """The data, the model and the rewards of one training."""

    rewards = (Letters(), Brief())

    def __init__(self, folder: Path, adapter: bool = False, dropout: float = 0.0, **model: Any) -> None:
        self.folder, self.adapter, self.model = folder, adapter, model
        self.lora = Lora(rank=4, dropout=dropout)
        self.data = replace(conversations(), mixing=Mixing(shuffle=False))
        self.seed, self.precision = 3, FP32

    def bundle(self, context: Any) -> ModelBundle:
        """The same tiny model each time, with an adapter that is no longer fresh where one is asked for."""
        bundle = ModelBundle(
            tiny_model(dtype=self.precision.weights, **self.model), tiny_tokenizer(), "tiny", self.precision
        )
        if not self.adapter:
            return bundle
        torch.manual_seed(0)
        bundle = context.calls.own("tunekit_attach_adapter", bundle=bundle, context=context)
        for name, parameter in bundle.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        return bundle

    def tune(self, stage: Any, name: str = "stage", resume: bool = False, watch: Any = None) -> Done:
        """Train by the stage."""
        events: list[Event] = []

        def see(event: Event) -> None:
            events.append(event)
            if watch is not None:
                watch(event)

        plugins = (stage, *self.rewards, AdamW(), self.lora)
        context = stage_context(*plugins, folder=self.folder / name, seed=self.seed, watch=see, resume=resume,
                                precision=self.precision)  # fmt: skip
        bundle = self.bundle(context)
        data = context.calls.own("tunekit_prepare_data", data=self.data, tokenizer=bundle.tokenizer, context=context)
        result = context.calls.own("tunekit_train_stage", bundle=bundle, data=data, context=context)
        return Done(result, events, weights_of(result.bundle.model))

    def alone(self, order: Sequence[int], **options: Any) -> Weights:
        """Train by TRL alone, on conversations that it writes and orders itself."""
        from datasets import Dataset

        context = stage_context(AdamW(), self.lora, folder=self.folder, seed=self.seed)
        bundle = self.bundle(context)
        rloo = options.pop("rloo", False)
        if options.get("beta", 0.05 if rloo else 0) and not self.adapter:
            bundle.model.save_pretrained(self.folder / "start")
            bundle.model.config.name_or_path = str(self.folder / "start")
        turns = [[{"role": turn.role, "content": turn.content} for turn in each.messages[:-1]] for each in self.data]
        trainer = trl.RLOOTrainer if rloo else trl.GRPOTrainer
        arguments = trl.RLOOConfig if rloo else trl.GRPOConfig
        made = trainer(
            model=bundle.model,
            reward_funcs=[
                lambda completions, **_: [letters(each[0]["content"]) for each in completions],
                lambda completions, **_: [-0.1 * len(each[0]["content"]) for each in completions],
            ],
            args=arguments(
                output_dir=str(self.folder / "alone"), shuffle_dataset=False, seed=self.seed, report_to="none",
                save_strategy="no", use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True,
                optim="adamw_torch_fused", **options,
            ),
            train_dataset=Dataset.from_list([{"prompt": turns[at]} for at in order]),
            processing_class=bundle.tokenizer,
        )  # fmt: skip
        made.train()
        return weights_of(bundle.model)


def weights_of(model: Any) -> Weights:
    """What trains, and what it has become."""
    return {name: each.detach().clone() for name, each in model.named_parameters() if each.requires_grad}


def furthest(one: Weights, other: Weights) -> float:
    """The largest difference between two sets of weights of the same names."""
    named = [name for name in one if ".ref." not in name]
    assert named
    return max(float((one[name] - other[name]).abs().max()) for name in named)


@pytest.fixture(scope="session", autouse=True)
def _frozen() -> Iterator[None]:
    """Trainer collects garbage each time, half a second for all that TRL has imported: that stays."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def distance() -> Callable[[Weights, Weights], float]:
    return furthest


@pytest.fixture
def setting(tmp_path: Path) -> Callable[..., Setting]:
    """A training in this test's folder: `setting(adapter=True)`."""

    def make(**options: Any) -> Setting:
        return Setting(tmp_path, **options)

    return make
