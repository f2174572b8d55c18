"""What PPO learns from: at each border prompts are answered anew, and the answers are learnt from several times."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tunekit.errors import DataError, PlanError, Problem
from tunekit.values import Item, StageContext, TokenSequence
from tunekit_train import Batch, Job, Prompts, Rules
from tunekit_train.order import split
from tunekit_train.permuting import permutation
from tunekit_train.producing import ProducedItems
from tunekit_train.reference import Copied, LiveReference, SwitchedOff, live_as_before, switching_obstacle

from .advantages import explained_variance, generalised_advantages, whiten
from .control import Control
from .estimate import steps_between, steps_of
from .gathering import Gatherer, Rollout
from .losses import divergence
from .objective import Answered
from .options import PpoConfig
from .rewarding import Rewards
from .sampling import Sampler

if TYPE_CHECKING:
    from tunekit_train.sources import Sources

STATE = "ppo.json"


class Rollouts(ProducedItems):
    """Answers to prompts, some at each border, as items that carry what their rollout knows of them."""

    def __init__(self, prompts: Any, config: PpoConfig, rules: Rules, context: StageContext) -> None:
        assert isinstance(prompts, Prompts), "the stage has prepared them"
        self.prompts, self.config, self.rules = prompts, config, rules
        self.account, self.mixing, self.fingerprint = prompts.account, prompts.mixing, prompts.fingerprint
        self.control = Control.of(config.kl)
        self.before: dict[str, float] = {}
        self._training, self._held_out = self._split(context)
        self._stack = ExitStack()

    def __iter__(self) -> Iterator[Item]:
        return iter(self.prompts)

    @property
    def steps_between(self) -> int:
        """Optimiser steps on the answers of one rollout."""
        return steps_between(self.config)

    @property
    def total_steps(self) -> int:
        """Enough rollouts for `epochs` passes over the prompts."""
        return steps_of(self.config, len(self._training))

    @property
    def held_out(self) -> int:
        """Prompts that are never learnt from."""
        return len(self._held_out)

    @property
    def held_out_numbers(self) -> tuple[int, ...]:
        """The prompts kept for evaluation, by their numbers."""
        return tuple(int(at) for at in self._held_out)

    def start(self, job: Job, sources: Sources, checkpoint: Path | None) -> None:
        """Choose the reference, open the rewards, and measure where the policy starts on unseen prompts."""
        self.job = job
        off = self._stack.enter_context(without_dropout(job.bundle.model))
        self.dropout = off
        self.reference = self._reference(job) if checkpoint is None else live_as_before(checkpoint)
        self.rewards = Rewards.of(self.config.reward, job, self.rules)
        sampler = Sampler(job.bundle, self.config.rollout)
        self.gatherer = Gatherer(job, sources, sampler, self.reference, self.rewards)
        if checkpoint is not None:
            kept = json.loads((checkpoint / STATE).read_text())
            self.control.coefficient, self.before = kept["coefficient"], kept["before"]
        elif len(self._held_out):
            self.before = self.evaluate()

    def produce(self, number: int) -> Sequence[Batch]:
        """Answer the next prompts, and lay the answers out for all passes over them."""
        config, job = self.config, self.job
        chosen = self._chosen(number)
        orders = [self._order(number, epoch) for epoch in range(config.rollout.epochs)]
        asked = [self.prompts.asked(at) for at in chosen]
        rollout = self.gatherer.gather(asked, orders[0], f"{job.context.seed} rollout {number}")
        items = self._items(rollout)
        self.control.update_(rollout.figures()["kl"], len(items))
        rows = config.batch.rows
        return [
            Batch(tuple(items[at] for at in order[start : start + rows]))
            for order in orders
            for start in range(0, len(order), rows)
        ]

    def evaluate(self) -> dict[str, float]:
        """What answers to unseen prompts are worth, and how far they are from the reference."""
        asked = [self.prompts.asked(int(at)) for at in self._held_out]
        seed = f"{self.job.context.seed} held out"
        figures = self.gatherer.gather(asked, range(len(asked)), seed).figures()
        return {"loss": -figures["score"], **figures}  # what is chosen by its loss is chosen by its score

    def save(self, folder: Path) -> None:
        """Keep the reference, and the coefficient that the next rollout begins with."""
        self.reference.save(folder)
        (folder / STATE).write_text(json.dumps({"coefficient": self.control.coefficient, "before": self.before}))

    def facts(self) -> Mapping[str, Any]:
        """How it was learnt."""
        told = {"prompts": len(self._training), "steps_per_rollout": self.steps_between, "dropout_off": self.dropout}
        before = {"held_out_before": self.before} if self.before else {}
        return {**told, **before, **self.reference.facts(), **self.rewards.facts()}

    def close(self) -> None:
        """Give the model its dropout back."""
        self._stack.close()

    def _split(self, context: StageContext) -> tuple[Any, Any]:
        count, share = len(self.prompts), self.config.evaluate.share
        if count < (2 if share else 1):
            raise DataError([Problem(f"{context.key}.data", f"{count} prompts are too few", "give more data")])
        return split(count, share, context.seed)

    def _reference(self, job: Job) -> LiveReference:
        """The adapter switched off where that is right, else a copy of what trains."""
        choice, model = self.config.reference, job.bundle.model
        if choice == "copied":
            return Copied.of(model, "asked for")
        first = [self.prompts.take(int(at)).sequences[0] for at in self._training[: self.config.batch.rows]]
        obstacle = switching_obstacle(job, Batch(tuple(Item((_whole(each),)) for each in first)))
        if obstacle is None:
            return SwitchedOff("the fresh adapter was seen to change nothing")
        where, remedy = f"{job.context.key}.reference", "set it to copied, which holds what trains twice"
        if choice == "switch_off" or not hasattr(model, "disable_adapter"):
            raise PlanError([Problem(where, f"is {choice}, and {obstacle}", remedy)])
        return Copied.of(model, obstacle)

    def _chosen(self, number: int) -> list[int]:
        """The prompts of a rollout: the next of an endless row of passes, each in an order of its own."""
        count, size = len(self._training), self.config.rollout.prompts
        found: list[int] = []
        place = number * size
        while len(found) < size:
            epoch, start = divmod(place + len(found), count)
            order = (
                permutation(count, f"{self.job.context.seed} epoch {epoch}") if self.mixing.shuffle else range(count)
            )
            found += [int(self._training[at]) for at in order[start : start + size - len(found)]]
        return found

    def _order(self, number: int, epoch: int) -> list[int]:
        """The answers of a rollout in the order of one pass over them."""
        seed = f"{self.job.context.seed} rollout {number} pass {epoch}"
        order: list[int] = permutation(self.config.rollout.prompts, seed).tolist()
        return order

    def _items(self, rollout: Rollout) -> list[Answered]:
        """The answers with their advantages and returns."""
        config = self.config
        lengths = [len(each.log_probs) for each in rollout.scored]
        log_probs, values, reference = (
            padded([getattr(each, name) for each in rollout.scored]) for name in ("log_probs", "values", "reference")
        )
        real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # [answers, tokens]
        rewards = -self.control.coefficient * divergence(log_probs, reference, config.kl.estimator) * real
        rewards[torch.arange(len(lengths)), torch.tensor(lengths) - 1] += torch.tensor(rollout.totals)
        if config.reward.whiten:
            rewards = whiten(rewards, real, centre=False)
        advantages, returns = generalised_advantages(rewards, values, real, config.discount, config.trace)
        told = {
            **rollout.figures(),
            "kl_coefficient": self.control.coefficient,
            "explained_variance": explained_variance(values[real], returns[real]),
        }
        if config.whiten_advantages:
            advantages = whiten(advantages, real)
        return [
            Answered(
                each.item.sequences,
                log_probs=each.log_probs,
                values=each.values,
                advantages=advantages[at, :length].numpy(),
                returns=returns[at, :length].numpy(),
                told=told,
            )
            for at, (each, length) in enumerate(zip(rollout.scored, lengths, strict=True))
        ]


def padded(parts: Sequence[Any]) -> Tensor:
    """Arrays of several lengths as one tensor, [parts, longest], zeros behind each."""
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(np.array(part)) for part in parts], batch_first=True)


def _whole(prompt: TokenSequence) -> TokenSequence:
    """A prompt of which every token counts."""
    return TokenSequence(prompt.ids, [0.0] + [1.0] * (len(prompt.ids) - 1), prompt.row, prompt.where)


@contextmanager
def without_dropout(model: Any) -> Iterator[int]:
    """Switch dropout off: the probability ratio of an answer would be that of two networks. Says how many there are."""
    dropped = [(each, "p", each.p) for each in model.modules() if isinstance(each, torch.nn.Dropout) and each.p]
    dropped += [
        (each, "attention_dropout", rate)
        for each in model.modules()
        if isinstance(rate := getattr(each, "attention_dropout", None), float) and rate
    ]
    for module, name, _ in dropped:
        setattr(module, name, 0.0)
    try:
        yield len(dropped)
    finally:
        for module, name, rate in dropped:
            setattr(module, name, rate)
