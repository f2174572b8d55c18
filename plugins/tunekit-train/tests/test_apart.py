"""Sequences that are only scored, run apart and without gradient, against running them with the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tunekit.testing.options import shows
from tunekit_train import (
    Batch,
    Item,
    Items,
    Job,
    Need,
    Objective,
    Provided,
    ReferenceLogProbs,
    SequenceValues,
    Sum,
    Sums,
    TokenLogProbs,
    TrainConfig,
)
from tunekit_train.apart import divide, part_of
from tunekit_train.forward import Strategy, prepared
from tunekit_train.sources import Sources
from tunekit_train.testing import bundle, context, family_model, random_items, tiny_llama, with_lora

STRATEGIES = {
    "shared": Strategy("segments", "test", share_prompts=True),
    "end to end": Strategy("segments", "test"),
    "padded": Strategy("padded", "test"),
}


def items(prompt: int = 8, answer: int = 12) -> list[Item]:
    """Three sequences each: of the first two, which share a prompt, and of others."""
    made = []
    for number in range(4):
        own, other, last = (random_items(4, seed, answer, answer)[number].sequences[0] for seed in (0, 1, 2))
        start = tuple(random_items(4, 3, prompt, prompt)[number].sequences[0].ids)
        first, second = (
            replace(each, ids=start + tuple(each.ids), weights=(0.0,) * prompt + tuple(each.weights))
            for each in (own, other)
        )
        made.append(Item((second, first, last)))
    return made


@dataclass
class Anchored(Objective):
    """sum over items of (logp(first) + value(first)) (1 + the anchor), which the other two are only scored for."""

    @property
    def needs(self) -> tuple[Need[Any], ...]:
        return (TokenLogProbs(), SequenceValues("normal"))

    def weight(self, batch: Batch) -> float:
        return len(batch.items)

    def scored_only(self, batch: Batch) -> tuple[bool, ...]:
        return (True, False, True) * len(batch.items)

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        scores = provided[TokenLogProbs()].sums(len(batch.sequences)).view(-1, 3)
        values = provided[SequenceValues("normal")].view(-1, 3)
        anchor = (scores[:, 0] + values[:, 2]).detach().mean()
        return Sums(((scores[:, 1] + values[:, 1]) * (1 + anchor)).sum())


class Counted:
    """Tokens that go through a model with and without gradient."""

    def __init__(self, model: Any) -> None:
        self.tokens = {True: 0, False: 0}
        model.get_input_embeddings().register_forward_hook(self._count)

    def _count(self, module: Any, given: Any, output: torch.Tensor) -> None:
        self.tokens[torch.is_grad_enabled()] += output.shape[0] * output.shape[1]


def ran(
    mode: str, strategy: str, folder: Path, batch: list[Item], family: str | None = None
) -> tuple[torch.Tensor, dict[str, Any], Counted]:
    folder.mkdir()
    model = with_lora(tiny_llama() if family is None else family_model(family))
    config = TrainConfig(compute={"scored_apart": mode})
    job = Job(Anchored(), Items(batch), bundle(model), config, context(folder), STRATEGIES[strategy])
    counted = Counted(model)
    with prepared(model, job.strategy, autocast=False):
        sources = Sources(job, None)
        loss = Anchored().sums(Batch(tuple(batch)), sources.provide(model, Batch(tuple(batch)), torch.device("cpu")))
        loss.loss.backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.requires_grad}
    assert sources.facts()["scored_apart"] == (mode == "auto")
    return loss.loss.detach(), gradients, counted


@shows("compute.scored_apart")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_loss_and_gradients_are_those_of_running_all_together(strategy: str, tmp_path: Path) -> None:
    loss, gradients, counted = ran("auto", strategy, tmp_path / "apart", items())
    expected, wanted, before = ran("never", strategy, tmp_path / "together", items())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-5, msg=name)
        assert gradient.any()
    assert counted.tokens == {True: 4 * 20, False: 4 * (20 + (20 if strategy == "padded" else 12))}
    assert before.tokens[False] == 0
    assert before.tokens[True] > counted.tokens[True]


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "gpt2", "gpt_oss", "mistral", "qwen3"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")
def test_loss_and_gradients_are_the_same_apart_for_every_kind_of_attention(family: str, tmp_path: Path) -> None:
    loss, gradients, _ = ran("auto", "shared", tmp_path / "apart", items(), family)
    expected, wanted, _ = ran("never", "shared", tmp_path / "together", items(), family)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-5, msg=name)


class SecondScored(Anchored):
    def scored_only(self, batch: Batch) -> tuple[bool, ...]:
        return (False, True) * len(batch.items)


@pytest.mark.parametrize(("prompt", "answer", "apart"), [(80, 3, False), (8, 12, True)])
def test_they_run_together_where_running_a_shared_prompt_twice_would_cost_more(
    prompt: int, answer: int, apart: bool
) -> None:
    pairs = Batch(tuple(replace(item, sequences=item.sequences[:2]) for item in items(prompt, answer)))
    assert (divide(SecondScored(), pairs, STRATEGIES["shared"]) is not None) == apart
    assert divide(SecondScored(), pairs, STRATEGIES["end to end"]) is not None


def test_without_a_gradient_nothing_is_divided() -> None:
    batch = Batch(tuple(items()))
    assert divide(Anchored(), batch, STRATEGIES["end to end"]) is not None
    with torch.no_grad():
        assert divide(Anchored(), batch, STRATEGIES["end to end"]) is None


def test_a_part_keeps_items_and_leaves_out_those_without_a_sequence_in_it() -> None:
    batch = Batch(tuple(items()))
    part = part_of(batch, (1, 4, 5))
    assert [len(item.sequences) for item in part.items] == [1, 2]
    assert list(part.sequences) == [batch.sequences[at] for at in (1, 4, 5)]


def test_an_objective_that_says_nothing_records_nothing(run_training: Callable[..., Any]) -> None:
    assert "scored_apart" not in run_training(steps=1).result.facts


class AgainstReference(SecondScored):
    """sum of log-ratios of the first sequences, and those of the second as a metric."""

    @property
    def needs(self) -> tuple[Need[Any], ...]:
        return (TokenLogProbs(), ReferenceLogProbs())

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        ratios = provided[TokenLogProbs()].log_probs - provided[ReferenceLogProbs()].log_probs
        return Sums(ratios.sum() * 1.0, {"apart": Sum(float(ratios.detach().abs().max()), 1.0)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_policy_and_reference_round_alike_where_they_are_the_same(dtype: torch.dtype, tmp_path: Path) -> None:
    """In half precision another layout rounds otherwise, and rewards would be noise at the start."""
    pairs = [replace(item, sequences=item.sequences[:2]) for item in items()]
    model = with_lora(tiny_llama().to(dtype))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(parameter)
        parameter.data = parameter.data.to(dtype)
    objective, batch = AgainstReference(), Batch(tuple(pairs))
    job = Job(objective, Items(pairs), bundle(model), TrainConfig(), context(tmp_path), STRATEGIES["shared"])
    with prepared(model, job.strategy, autocast=False):
        sources = Sources(job, None)
        assert divide(objective, batch, job.strategy, further=1) is not None
        sums = objective.sums(batch, sources.provide(model, batch, torch.device("cpu")))
    assert sources.facts()["reference"] == "switch_off"
    assert sums.loss.requires_grad
    assert sums.metrics["apart"].total == 0
