"""Segments and the supervised-only head against the plain padded computation of transformers."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from tunekit.errors import PlanError
from tunekit_train import Batch, Provided, TokenLogProbs
from tunekit_train.forward import Forward, Strategy, choose_strategy, prepared
from tunekit_train.layout import lay_padded
from tunekit_train.segments import FAMILIES
from tunekit_train.testing import CrossEntropy, family_model, random_items

TOLERANCE = {"rtol": 1e-4, "atol": 2e-6}
"""fp32: the same sums in another order; the tiny models' gradients are of the order of 1e-2."""


def plain_padded(model: Any, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Transformers alone: a padded batch, logits everywhere, cross-entropy written out."""
    layout = lay_padded(batch.sequences, 0)
    logits = model(input_ids=layout.input_ids, attention_mask=layout.attention_mask).logits.float()
    total = torch.zeros(())
    for row, sequence in enumerate(batch.sequences):
        for at in range(1, len(sequence.ids)):
            log_probs = torch.log_softmax(logits[row, at - 1], -1)
            total = total - sequence.weights[at] * log_probs[sequence.ids[at]]
    return total, gradients_of(model, total)


def ours(model: Any, batch: Batch, strategy: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    chosen = Strategy(strategy, "test")  # type: ignore[arg-type]
    with prepared(model, chosen, autocast=False):
        forward = Forward(model, batch, chosen.lay_out(batch))
        total = CrossEntropy().sums(batch, Provided({TokenLogProbs(): TokenLogProbs().provide(forward)})).loss
        return total, gradients_of(model, total)


def gradients_of(model: Any, total: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    total.backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def assert_same(left: Any, right: Any) -> None:
    torch.testing.assert_close(left[0], right[0], **TOLERANCE)
    assert left[1].keys() == right[1].keys()
    for name in left[1]:
        message = partial("{} {}".format, name)
        torch.testing.assert_close(left[1][name], right[1][name], **TOLERANCE, msg=message)


@pytest.fixture
def batch() -> Batch:
    return Batch(tuple(random_items(4, shortest=1, longest=20)))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_segments_give_the_loss_and_gradients_of_the_padded_computation(family: str, batch: Batch) -> None:
    model = family_model(family)
    assert_same(ours(model, batch, "segments"), plain_padded(model, batch))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_padding_gives_the_loss_and_gradients_of_the_plain_computation(family: str, batch: Batch) -> None:
    model = family_model(family)
    assert_same(ours(model, batch, "padded"), plain_padded(model, batch))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_verified_family_is_chosen_to_run_without_padding(family: str) -> None:
    assert choose_strategy(family_model(family), "auto", 0, "stages.0.sft").name == "segments"


HYBRID = "lfm2"
"""Convolutions over the sequence in one layer, attention in the other: a state that no border would reset."""


def test_a_hybrid_model_is_padded_and_says_why(batch: Batch) -> None:
    model = family_model(HYBRID)
    chosen = choose_strategy(model, "auto", 0, "stages.0.sft")
    assert (chosen.name, chosen.reason) == ("padded", "lfm2 is not among the models verified without padding")
    assert_same(ours(model, batch, "padded"), plain_padded(model, batch))
    with pytest.raises(PlanError, match=r"stages.0.sft.batch.padding: padding is never, but lfm2 is not among the"):
        choose_strategy(model, "never", 0, "stages.0.sft")


def test_a_model_whose_attention_does_not_hear_of_its_window_is_padded() -> None:
    from transformers import Qwen2MoeForCausalLM

    config = family_model("qwen2_moe").config
    config.layer_types, config.sliding_window = ["sliding_attention", "full_attention"], 6
    chosen = choose_strategy(Qwen2MoeForCausalLM(config), "auto", 0, "stages.0.sft")
    assert (chosen.name, chosen.reason) == ("padded", "qwen2_moe does not tell its attention of its sliding window")


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "gpt2", "gpt_oss", "llama", "mistral", "qwen3"])
def test_the_families_that_users_meet_first_are_among_the_verified(family: str) -> None:
    assert family in FAMILIES
