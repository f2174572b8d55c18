"""Value heads: what they compute, that they train, and that they are saved, restored and taken up again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tunekit.errors import InterruptedRunError, TunekitError
from tunekit.values import ModelBundle
from tunekit_train import (
    Batch,
    Forward,
    Layout,
    Need,
    Objective,
    Provided,
    SequenceValues,
    Sums,
    TokenLogProbs,
    TokenValues,
    TrainConfig,
    ValueHead,
    train,
)
from tunekit_train.forward import Strategy, prepared
from tunekit_train.heads import attach_, head_of
from tunekit_train.testing import BF16, FP32, bundle, context, random_items, tiny_llama, tiny_tokenizer, with_lora

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


class Regression(Objective):
    """The value of each sequence is to be its length over ten, and that of each token 1."""

    def __init__(self, **options: Any) -> None:
        self.sequence, self.token = SequenceValues(**options), TokenValues(**options)
        self.calls = 0

    @property
    def needs(self) -> tuple[Need[Any], ...]:
        return (TokenLogProbs(), self.sequence, self.token)

    def weight(self, batch: Batch) -> float:
        return len(batch.sequences)

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        self.calls += 1
        values, tokens = provided[self.sequence], provided[self.token]
        assert values.dtype == tokens.dtype == torch.float32
        assert values.shape == (len(batch.sequences),)
        assert tokens.shape == (batch.supervised_tokens,)
        wanted = torch.tensor([len(sequence.ids) / 10 for sequence in batch.sequences])
        loss = ((values - wanted) ** 2).sum() + 0.01 * ((tokens - 1) ** 2).sum()
        return Sums(loss - 0.001 * provided[TokenLogProbs()].log_probs.sum())


def starting_head(model: Any) -> ValueHead:
    head = ValueHead(32, "normal", seed=3)
    attach_(model, head)
    return head


@pytest.mark.parametrize("strategy", ["segments", "padded"])
def test_values_are_the_head_on_the_last_hidden_state(strategy: Any, tmp_path: Path) -> None:
    seen: dict[str, torch.Tensor] = {}

    class Looks(Regression):
        def sums(self, batch: Batch, provided: Provided) -> Sums:
            seen.update(sequence=provided[self.sequence].detach(), token=provided[self.token].detach())
            return super().sums(batch, provided)

    model, items = tiny_llama(), random_items(3)
    head = starting_head(model)
    expected, tokens = [], []
    for item in items:
        (sequence,) = item.sequences
        with torch.no_grad():
            hidden = model.model(torch.tensor([sequence.ids])).last_hidden_state[0]
        values = hidden @ head.weight.detach()[0] + head.offset.detach()
        expected.append(values[-1])
        tokens += [values[at - 1] for at in range(1, len(sequence.ids)) if sequence.weights[at]]
    options = TrainConfig(steps=1, batch={"rows": 3, "padding": "always" if strategy == "padded" else "never"})
    facts = train(Looks(), random_items(3), bundle(model), options, context(tmp_path)).facts
    assert facts["value_head"] == "an earlier stage"
    torch.testing.assert_close(seen["sequence"].sort().values, torch.stack(expected).sort().values, **TOLERANCE)
    torch.testing.assert_close(seen["token"].sort().values, torch.stack(tokens).sort().values, **TOLERANCE)


def test_one_run_of_the_model_serves_all_needs(run_training: Callable[..., Any]) -> None:
    model, runs, logits = tiny_llama(), [], []
    model.model.register_forward_hook(lambda *_: runs.append(1))
    model.lm_head.register_forward_hook(lambda module, given, out: logits.append(out.shape[1]))
    items = random_items(4)
    run_training(model, items, Regression(), steps=1)
    assert len(runs) == 1
    assert logits == [Batch(tuple(items)).supervised_tokens]


class ValuesAlone(Regression):
    @property
    def needs(self) -> tuple[Need[Any], ...]:
        return (self.sequence,)

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        return Sums(((provided[self.sequence] - 1) ** 2).sum())


def test_values_alone_compute_no_logits(run_training: Callable[..., Any]) -> None:
    model, logits = tiny_llama(), []
    model.lm_head.register_forward_hook(lambda module, given, out: logits.append(out.shape[1]))
    run_training(model, objective=ValuesAlone(start="normal"), steps=2)
    assert logits == [0, 0]


@pytest.mark.parametrize("adapted", [True, False])
def test_head_and_model_learn_together(adapted: bool, run_training: Callable[..., Any]) -> None:
    model = with_lora(tiny_llama()) if adapted else tiny_llama()
    before = {name: each.clone() for name, each in model.named_parameters()}
    trained = run_training(model, objective=Regression(), epochs=20, learning_rate=1e-2)
    assert trained.values("loss")[-1] < 0.2 * trained.values("loss")[0]
    moved = {
        name for name, each in trained.weights.items() if name not in before or not torch.equal(each, before[name])
    }
    assert {"value_head.default.weight", "value_head.default.offset"} < moved
    assert all("lora_" in name or "value_head" in name for name in moved) is adapted


def test_the_start_is_zero_or_as_wide_as_stated(run_training: Callable[..., Any]) -> None:
    assert not any(each.any() for each in ValueHead(2000).parameters())
    normal = ValueHead(2000, "normal", seed=1)
    assert float(normal.weight.detach().std()) == pytest.approx(2001**-0.5, rel=0.1)
    assert torch.equal(normal.weight, ValueHead(2000, "normal", seed=1).weight)
    facts = [run_training(objective=Regression(start=start), steps=1).result.facts for start in ("zeros", "normal")]
    assert [each["value_head"] for each in facts] == ["fresh, zeros", "fresh, normal"]


def test_a_frozen_head_scores_and_does_not_learn(run_training: Callable[..., Any]) -> None:
    model = tiny_llama()
    head = starting_head(model)
    before = head.weight.detach().clone()

    class Frozen(Regression):
        def sums(self, batch: Batch, provided: Provided) -> Sums:
            assert not provided[self.sequence].requires_grad
            return super().sums(batch, provided)

    run_training(model, objective=Frozen(frozen=True), steps=2)
    assert torch.equal(head_of(model).weight, before)
    assert not torch.equal(model.lm_head.weight, tiny_llama().lm_head.weight)


@pytest.mark.parametrize("adapted", [True, False])
def test_the_head_is_saved_beside_the_weights_and_not_among_them(
    adapted: bool, run_training: Callable[..., Any]
) -> None:
    trained = run_training(with_lora(tiny_llama()) if adapted else tiny_llama(), objective=Regression(), epochs=2)
    folder = trained.folder / ("adapter" if adapted else "model")
    weights = load_file(folder / ("adapter_model.safetensors" if adapted else "model.safetensors"))
    assert not [name for name in weights if "value_head" in name]
    saved, head = ValueHead.load(folder), head_of(trained.result.bundle.model)
    assert head is not None
    assert torch.equal(saved.weight, head.weight)
    assert torch.equal(saved.offset, head.offset)
    with pytest.raises(TunekitError, match="holds no value head; name the folder of a stage that trained one"):
        ValueHead.load(trained.folder)


@pytest.mark.parametrize("adapted", [True, False])
def test_a_later_stage_goes_on_with_the_head_in_one_process_and_from_its_file(
    adapted: bool, run_training: Callable[..., Any], tmp_path: Path
) -> None:
    first = run_training(with_lora(tiny_llama()) if adapted else tiny_llama(), objective=Regression(), epochs=2)
    head = head_of(first.result.bundle.model)
    saved = first.folder / ("adapter" if adapted else "model")
    options = TrainConfig(steps=1, learning_rate=1e-9)

    def later(name: str, given: ModelBundle) -> Any:
        (tmp_path / name).mkdir()
        result = train(Regression(), random_items(4), given, options, context(tmp_path / name))
        assert result.facts["value_head"] == "an earlier stage"
        return head_of(result.bundle.model)

    model = with_lora(tiny_llama()) if adapted else tiny_llama()
    opened = ModelBundle(
        model, tiny_tokenizer(), "tiny" if adapted else str(saved), FP32, saved_adapter=saved if adapted else None
    )
    for name, given in {"file": opened, "process": first.result.bundle}.items():
        torch.testing.assert_close(later(name, given).weight, head.weight, rtol=0, atol=1e-6)


def test_a_stage_without_values_leaves_the_head_alone_and_keeps_it(run_training: Callable[..., Any]) -> None:
    first = run_training(with_lora(tiny_llama()), objective=Regression(), epochs=2)
    model = first.result.bundle.model
    before = head_of(model).weight.detach().clone()
    second = run_training(model, epochs=1, learning_rate=1e-2, weight_decay=0.5)
    assert torch.equal(ValueHead.load(second.folder / "adapter").weight, before)


class Stops(Regression):
    """Ctrl-C in the third micro-batch."""

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        sums = super().sums(batch, provided)
        if self.calls == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return sums


@pytest.mark.parametrize("adapted", [True, False])
def test_a_run_that_goes_on_reaches_the_same_head_bit_for_bit(
    adapted: bool, run_training: Callable[..., Any], tmp_path: Path
) -> None:
    def model() -> Any:
        return with_lora(tiny_llama()) if adapted else tiny_llama()

    options = {"steps": 6, "learning_rate": 1e-2, "folder": tmp_path / "run"}
    with pytest.raises(InterruptedRunError):
        run_training(model(), objective=Stops(start="normal"), **options)
    resumed = run_training(model(), objective=Regression(start="normal"), resume=True, **options)
    whole = run_training(model(), objective=Regression(start="normal"), **{**options, "folder": tmp_path / "whole"})
    assert resumed.result.facts["value_head"] == whole.result.facts["value_head"] == "fresh, normal"
    assert resumed.values("loss") == whole.values("loss")[3:]
    for name, value in whole.weights.items():
        assert torch.equal(value, resumed.weights[name]), name


def test_the_head_computes_and_trains_in_fp32_whatever_the_model_does(tmp_path: Path) -> None:
    from dataclasses import replace

    precision = replace(BF16, trainable="bfloat16")
    model = with_lora(tiny_llama().to(torch.bfloat16))
    result = train(Regression(), random_items(4), bundle(model, precision), TrainConfig(steps=2), context(tmp_path))
    head = head_of(result.bundle.model)
    assert head is not None
    assert {each.dtype for each in head.parameters()} == {torch.float32}


class Twice(Need[tuple[torch.Tensor, torch.Tensor]]):
    """Asks at the same positions as `TokenLogProbs`, and at others that it has not announced."""

    def logits_at(self, layout: Layout) -> torch.Tensor:
        return layout.positions

    def provide(self, forward: Forward) -> tuple[torch.Tensor, torch.Tensor]:
        return forward.logits(forward.layout.positions), forward.hidden(forward.layout.ends)


def test_what_needs_share_is_not_written_over_and_what_was_not_announced_is_a_run_of_its_own() -> None:
    model, runs = tiny_llama(), []
    model.model.register_forward_hook(lambda *_: runs.append(1))
    strategy, batch, own = Strategy("segments", "test"), Batch(tuple(random_items(3))), Twice()
    layout = strategy.lay_out(batch)
    with prepared(model, strategy, autocast=False):
        alone = Forward(model, batch, layout).logits(layout.positions).detach()
        hidden = Forward(model, batch, layout).hidden(layout.ends).detach()
        runs.clear()
        for order in ((TokenLogProbs(), own), (own, TokenLogProbs())):
            forward = Forward(model, batch, layout, order)
            provided = {type(need): need.provide(forward) for need in order}
            torch.testing.assert_close(provided[Twice][0].detach().log_softmax(-1), alone.log_softmax(-1))
            torch.testing.assert_close(provided[Twice][1].detach(), hidden)
            provided[TokenLogProbs].log_probs.sum().backward()
    assert len(runs) == 4
    assert model.lm_head.weight.shape[1] == hidden.shape[1]
    assert not model.lm_head._forward_pre_hooks
