"""Rewards by trained models: an adapter with a value head on the policy's own base, or a model of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tunekit.errors import PlanError, Problem, TunekitError
from tunekit.values import Account, Example, ModelBundle, Precision, Sample
from tunekit_lora.named import bare
from tunekit_lora.stacking import require_same
from tunekit_train import Batch, Encoder, Forward, Item, Job, Rules, SequenceValues, ValueHead
from tunekit_train.forward import Strategy, prepared
from tunekit_train.heads import FILE as HEAD
from tunekit_train.heads import TrainedHead
from tunekit_train.reference import evaluating

from .rewarding import Rewarder

ROWS = 16
"""Answers valued at once."""
NAME = "tunekit_reward"


class AdapterReward(Rewarder):
    """The value head of a reward stage, with its adapter in the policy's place on the one base model.

    The adapter is on the model only while it values: it takes no memory, and is in no checkpoint, in between.
    """

    name = "reward_adapter"

    def __init__(self, folder: Path, job: Job, rules: Rules) -> None:
        if not hasattr(job.bundle.model, "disable_adapter"):
            what = "needs the base as it was trained on, and here the base's own weights train"
            remedy = "train the policy as an adapter (`use: {lora: {}}`), or name a full model in reward.model"
            raise PlanError([Problem(f"{job.context.key}.reward.adapter", what, remedy)])
        if not (folder / HEAD).is_file():
            what = f"{folder} holds an adapter without a value head"
            raise PlanError([Problem(f"{job.context.key}.reward.adapter", what, "name what a `reward` stage left")])
        require_same(folder, bare(job.bundle.model))
        self.folder, self.job = folder, job
        self.encoder = Encoder(job.bundle.tokenizer, replace(rules, max_length=None))
        self.head = ValueHead.load(folder).to(next(job.bundle.model.parameters()).device).requires_grad_(False)

    def value(self, samples: Sequence[Sample]) -> list[float]:
        """In the order of the answers."""
        job = self.job
        items = encoded(self.encoder, samples)
        with evaluating(job.bundle.model), self._on(job.bundle.model), torch.no_grad(), job.autocast():
            return in_parts(items, lambda part: run_head(job.bundle.model, part, job.strategy, self.head))

    @contextmanager
    def _on(self, model: Any) -> Iterator[None]:
        """The reward adapter is active. What trains stays what it is."""
        trains = [(each, each.requires_grad) for each in model.parameters()]
        active = model.active_adapter
        model.load_adapter(str(self.folder), NAME, is_trainable=False, low_cpu_mem_usage=True)
        try:
            model.set_adapter(NAME, inference_mode=True)
            yield
        finally:
            model.set_adapter(active)
            model.delete_adapter(NAME)
            for parameter, train in trains:
                parameter.requires_grad_(train)


class ModelReward(Rewarder):
    """A full reward model in a folder: what a `reward` stage leaves that trains all weights, or a sequence classifier.

    It has its own tokenizer and chat template, and is frozen.
    """

    name = "reward_model"

    def __init__(self, folder: Path, bundle: ModelBundle, rules: Rules) -> None:
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

        precision = bundle.precision
        kind: Any = AutoModelForCausalLM if (folder / HEAD).is_file() else AutoModelForSequenceClassification
        dtype = getattr(torch, precision.weights)
        model, info = kind.from_pretrained(str(folder), dtype=dtype, output_loading_info=True)
        if info["missing_keys"]:
            what = f"the weights of {folder} lack {', '.join(sorted(info['missing_keys']))}, which would be random"
            raise TunekitError(what, "name a trained reward model")
        self.model = model.to(precision.device).eval().requires_grad_(False)
        self.precision: Precision = precision
        self.tokenizer = AutoTokenizer.from_pretrained(str(folder))
        self.encoder = Encoder(self.tokenizer, replace(rules, max_length=None))
        self.head = None
        if kind is AutoModelForCausalLM:
            self.head = ValueHead.load(folder).to(precision.device).requires_grad_(False)
        elif self.model.config.num_labels != 1:
            what = f"{folder} classifies into {self.model.config.num_labels} labels, and a reward is one number"
            raise TunekitError(what, "name a model with one label, or what a `reward` stage left")

    def value(self, samples: Sequence[Sample]) -> list[float]:
        """In the order of the answers."""
        precision, items = self.precision, encoded(self.encoder, samples)
        dtype = getattr(torch, precision.compute)
        with torch.no_grad(), torch.autocast(precision.device, dtype, enabled=precision.autocast):
            return in_parts(items, self._run)

    def _run(self, items: Sequence[Item]) -> list[float]:
        # A classifier values the last token that is not the padding of its config.
        known = (self.model.config.pad_token_id, self.tokenizer.pad_token_id, 0)
        padding = next(token for token in known if token is not None)
        strategy = Strategy("padded", "a few answers", padding)
        if self.head is not None:
            with prepared(self.model, strategy, self.precision.autocast):
                return run_head(self.model, items, strategy, self.head)
        layout = strategy.lay_out(Batch(tuple(items))).to(self.model.device)
        found = self.model(input_ids=layout.input_ids, attention_mask=layout.attention_mask).logits
        values: list[float] = found[:, 0].float().tolist()
        return values


def run_head(model: Any, items: Sequence[Item], strategy: Strategy, head: ValueHead) -> list[float]:
    """The value of the last token of each item."""
    need, batch = SequenceValues(), Batch(tuple(items))
    layout = strategy.lay_out(batch).to(next(model.parameters()).device)
    source = TrainedHead(head, "a reward stage")
    values: list[float] = need.provide(Forward(model, batch, layout, (need,), {need: source})).tolist()
    return values


def encoded(encoder: Encoder, samples: Sequence[Sample]) -> list[Item]:
    """Prompts with their answers, written as the conversations that a reward stage has learnt from."""
    account = Account()
    examples = [Example(at, sample.where, sample.conversation) for at, sample in enumerate(samples, 1)]
    made = encoder.encode(examples, account)
    return [items[0] if items else _empty(encoder, sample) for items, sample in zip(made, samples, strict=True)]


def _empty(encoder: Encoder, sample: Sample) -> Item:
    """An answer that says nothing cannot be encoded as one to learn from; its place is that of a blank."""
    account = Account()
    made = encoder.encode([Example(1, sample.where, replace(sample, answer=" ").conversation)], account)
    if not made[0]:
        account.stop_on_problems()
    return made[0][0]


def in_parts(items: Sequence[Item], run: Any) -> list[float]:
    """Run items of similar length together; what comes out is in their order."""
    order = sorted(range(len(items)), key=lambda at: items[at].tokens)
    values = [0.0] * len(items)
    for start in range(0, len(order), ROWS):
        chosen = order[start : start + ROWS]
        for at, value in zip(chosen, run([items[at] for at in chosen]), strict=True):
            values[at] = value
    return values
