"""The work of a step is what PyTorch counts when it is made, and the speeds told are sums over seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tunekit_train import Batch, Forward
from tunekit_train.forward import choose_strategy, prepared
from tunekit_train.testing import family_model, random_items, tiny_llama, with_lora
from tunekit_train.work import Work, matrix_rate


def counted(model: Any) -> tuple[float, float]:
    """The operations of one micro-batch's products as PyTorch counts them, and as `Work` does."""
    batch = Batch(tuple(random_items(6)))
    strategy = choose_strategy(model, "auto", 0, "stages.0.sft")
    counter = FlopCounterMode(display=False)
    with prepared(model, strategy, False), counter:
        forward = Forward(model, batch, strategy.lay_out(batch))
        forward.logits(forward.layout.positions).square().mean().backward()
    products = {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}
    made = sum(count for name, count in products.items() if name in ("aten.mm", "aten.addmm"))
    return made, Work.of(model).operations(batch.tokens, batch.supervised_tokens)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_the_work_of_full_fine_tuning_is_what_pytorch_counts(family: str) -> None:
    made, work = counted(family_model(family))
    assert work == pytest.approx(made)


def test_the_work_of_an_adapter_leaves_out_the_gradients_of_frozen_weights() -> None:
    made, work = counted(with_lora(tiny_llama()))
    # Two of the first layer's products need no gradient of their input; `Work` takes them to follow what trains.
    assert made < work < 1.05 * made


def test_layers_that_are_kept_are_no_work() -> None:
    model = tiny_llama()
    model.requires_grad_(False)
    model.model.layers[1].requires_grad_(True)
    whole, upper = Work.of(model), Work.of(model, skipped=1)
    lower = sum(each.numel() for each in model.model.layers[0].parameters() if each.ndim == 2)
    assert whole.per_token - upper.per_token == 2 * lower


def test_the_rate_is_measured_once_and_is_that_of_a_product() -> None:
    rate = matrix_rate("cpu", torch.float32)
    assert rate == matrix_rate("cpu", torch.float32)
    assert 1e8 < rate < 1e14


def test_a_step_tells_its_speeds(run_training: Callable[..., Any]) -> None:
    trained = run_training(steps=2)
    for told in trained.metrics("step"):
        seconds = told["tokens"] / told["tokens_per_second"]
        assert told["supervised_tokens"] / told["supervised_tokens_per_second"] == pytest.approx(seconds)
        work = Work.of(tiny_llama()).operations(int(told["tokens"]), int(told["supervised_tokens"]))
        assert told["matrix_share"] == pytest.approx(work / seconds / trained.result.facts["matrix_rate"])
