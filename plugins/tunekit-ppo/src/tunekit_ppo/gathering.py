"""One rollout: answers sampled, valued, and compared with the reference, by the model as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tunekit.values import Item, Sample, TokenSequence
from tunekit_train import Asked, Batch, Forward, Job, TokenValues
from tunekit_train.reference import LiveReference, evaluating

from .needs import SampledLogProbs
from .objective import Numbers
from .rewarding import Named, Rewards
from .sampling import Said, Sampler

if TYPE_CHECKING:
    from tunekit_train.sources import Sources


@dataclass(frozen=True)
class Scored:
    """An answer in tokens, and what policy, values and reference said of each, fp32 [answer tokens]."""

    item: Item
    log_probs: Numbers
    values: Numbers
    reference: Numbers


@dataclass(frozen=True)
class Rollout:
    """Answers to some prompts: what was said, what it is worth, and how probable it was, in the order of the prompts.

    `rewards` are those of each source, `totals` what is learnt from.
    """

    samples: Sequence[Sample]
    scored: Sequence[Scored]
    rewards: Named
    totals: Sequence[float]

    def figures(self) -> dict[str, float]:
        """The rollout in a few numbers. `kl` is in nats per answer, `entropy` in nats per token, both estimates."""
        count = len(self.samples)
        lengths = [len(each.log_probs) for each in self.scored]
        distance = sum(float((each.log_probs - each.reference).sum()) for each in self.scored)
        surprise = -sum(float(each.log_probs.sum()) for each in self.scored)
        return {
            "reward": sum(map(sum, self.rewards.values())) / count,
            **{f"reward_{name.removeprefix('reward_')}": sum(values) / count for name, values in self.rewards.items()},
            "score": sum(self.totals) / count,
            "kl": distance / count,
            "entropy": surprise / sum(lengths),
            "answer_tokens": sum(lengths) / count,
            "ended": sum(sample.finish == "end" for sample in self.samples) / count,
        }


class Gatherer:
    """Makes rollouts with the model of a job. Each answer is run once through the engine's own forward."""

    def __init__(
        self, job: Job, sources: Sources, sampler: Sampler, reference: LiveReference, rewards: Rewards
    ) -> None:
        self.job, self.sources, self.sampler = job, sources, sampler
        self.reference, self.rewards = reference, rewards
        self.need: SampledLogProbs = next(need for need in sources.needs if isinstance(need, SampledLogProbs))

    def gather(self, asked: Sequence[Asked], order: Sequence[int], seed: str) -> Rollout:
        """Answer prompts and score the answers, in micro-batches of this `order`.

        In the order of the first steps: a micro-batch that is scored and trained in one shape has one rounding.
        """
        model = self.job.bundle.model
        with evaluating(model), torch.no_grad(), self.job.autocast():
            said = self.sampler.answer([each.ids.tolist() for each in asked], seed)
            items = [answered(prompt, answer) for prompt, answer in zip(asked, said, strict=True)]
            samples = [self._sample(prompt, answer) for prompt, answer in zip(asked, said, strict=True)]
            scored: dict[int, Scored] = {}
            for start in range(0, len(order), self.job.config.batch.rows):
                chosen = order[start : start + self.job.config.batch.rows]
                scored.update(zip(chosen, self._score([items[at] for at in chosen]), strict=True))
            rewards = self.rewards.value(samples)
        whole = [scored[at] for at in range(len(asked))]
        return Rollout(samples, whole, rewards, self.rewards.total(rewards, samples))

    def _sample(self, prompt: Asked, said: Said) -> Sample:
        text: str = self.job.bundle.tokenizer.decode(said.ids, skip_special_tokens=True)
        return prompt.sample(text, said.finish)

    def _score(self, items: Sequence[Item]) -> Iterator[Scored]:
        model, batch = self.job.bundle.model, Batch(tuple(items))
        device = next(model.parameters()).device
        provided = self.sources.provide(model, batch, device)
        found = (provided[self.need].log_probs, provided[TokenValues()], self._of_reference(batch, device))
        lengths = [batch.supervised_tokens for batch in (Batch((item,)) for item in items)]
        parts = (np.split(each.float().cpu().numpy(), np.cumsum(lengths)[:-1]) for each in found)
        return (Scored(item, *each) for item, *each in zip(items, *parts, strict=True))

    def _of_reference(self, batch: Batch, device: torch.device) -> Tensor:
        model, need = self.job.bundle.model, SampledLogProbs(self.need.temperature)
        layout = self.job.strategy.lay_out(batch).to(device)
        with self.reference.acting(model):
            return need.provide(Forward(model, batch, layout, (need,), chunked=self.job.fitting.chunked_head)).log_probs


def answered(prompt: Asked, said: Said) -> Item:
    """A prompt and its answer as one sequence, in which the answer is trained."""
    ids = np.concatenate([np.asarray(prompt.ids, np.int64), np.asarray(said.ids, np.int64)])
    weights = np.zeros(len(ids), np.float32)
    weights[len(prompt.ids) :] = 1
    return Item((TokenSequence(ids, weights, prompt.row, prompt.where, prompt.cut),))  # type: ignore[arg-type]
