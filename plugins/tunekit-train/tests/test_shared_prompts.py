"""Prompts that are computed once for all sequences of an item, against each sequence run by itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from tunekit.testing.options import shows
from tunekit_train import Batch, Item, Provided, SequenceValues, TokenLogProbs, TokenSequence
from tunekit_train.forward import Forward, Strategy, choose_strategy, prepared
from tunekit_train.layout import SHORTEST_PREFIX, common_prefix, laid_tokens, lay_shared
from tunekit_train.segments import FAMILIES
from tunekit_train.testing import CrossEntropy, family_model, tiny_llama, with_lora

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
"""fp32: the same sums in another order; with loss weights up to 3.5 the largest gradients are of the order of 10."""
SHARED = Strategy("segments", "test", share_prompts=True)
UNSHARED = Strategy("segments", "test")
PADDED = Strategy("padded", "test")


def group(seed: int, prompt: int, *answers: int, supervised_from: int | None = None) -> Item:
    """Sequences with a common prompt and answers of these lengths."""
    dice = random.Random(seed)
    common = [dice.randrange(3, 128) for _ in range(prompt)]
    begin = prompt if supervised_from is None else supervised_from
    sequences = []
    for number, length in enumerate(answers):
        ids = [*common, 3 + number, *(dice.randrange(3, 128) for _ in range(length - 1))]
        weights = [0.0 if at < begin else 0.5 + number for at in range(len(ids))]
        sequences.append(TokenSequence(ids, weights, seed, f"rows.json, row {seed}"))
    return Item(tuple(sequences))


@pytest.fixture
def batch() -> Batch:
    """Two pairs, a group of four, a pair with no common prompt, a single sequence, and a prompt with a loss."""
    return Batch(
        (
            group(1, 12, 5, 9),
            group(2, 9, 1, 7),
            group(3, 10, 3, 4, 8, 2),
            group(4, 0, 6, 5),
            group(5, 4, 6),
            group(6, 11, 4, 4, supervised_from=3),
        )
    )


def run(model: Any, batch: Batch, strategy: Strategy) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    with prepared(model, strategy, autocast=False):
        forward = Forward(model, batch, strategy.lay_out(batch), (TokenLogProbs(),))
        scores = TokenLogProbs().provide(forward)
        log_probs = scores.log_probs.detach().clone()
        loss = CrossEntropy().sums(batch, Provided({TokenLogProbs(): scores})).loss
        model.zero_grad()
        loss.backward()
    return log_probs, {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("other", [UNSHARED, PADDED], ids=["unshared", "padded"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_log_probabilities_and_gradients_are_those_of_the_sequences_alone(
    family: str, other: Strategy, batch: Batch
) -> None:
    model = family_model(family)
    found, expected = run(model, batch, SHARED), run(model, batch, other)
    torch.testing.assert_close(found[0], expected[0], **TOLERANCE)
    assert found[1].keys() == expected[1].keys()
    for name in found[1]:
        torch.testing.assert_close(found[1][name], expected[1][name], **TOLERANCE, msg=partial("{} {}".format, name))


@pytest.mark.parametrize("seed", range(8))
def test_groups_of_any_shape_give_the_same(seed: int) -> None:
    dice = random.Random(seed)
    items = [
        group(number, dice.randrange(0, 20), *(dice.randrange(1, 10) for _ in range(dice.randrange(1, 6))))
        for number in range(3)
    ]
    model, batch = family_model("mistral"), Batch(tuple(items))
    torch.testing.assert_close(run(model, batch, SHARED)[0], run(model, batch, UNSHARED)[0], **TOLERANCE)


def test_the_prompt_is_in_the_row_once(batch: Batch) -> None:
    layout = lay_shared(batch.items)
    assert layout.input_ids.numel() == 12 + 5 + 9 + 9 + 1 + 7 + 10 + 3 + 4 + 8 + 2 + 6 + 5 + 10 + 11 + 4 + 4
    assert layout.input_ids.numel() == sum(layout.lengths) < batch.tokens
    assert laid_tokens(batch.items, share_prompts=True) == layout.input_ids.numel()
    assert laid_tokens(batch.items, share_prompts=False) == batch.tokens
    assert layout.lengths[:3] == (12, 5, 9)
    assert layout.key_lengths[:3] == (12, 17, 21)


def test_every_supervised_token_is_predicted_from_the_token_before_it(batch: Batch) -> None:
    for layout in (lay_shared(batch.items), UNSHARED.lay_out(batch), PADDED.lay_out(batch)):
        ids, places = layout.input_ids.flatten(), layout.position_ids.flatten()
        before = [(s.ids[at - 1], at - 1) for s in batch.sequences for at in range(1, len(s.ids)) if s.weights[at]]
        assert list(zip(ids[layout.positions].tolist(), places[layout.positions].tolist(), strict=True)) == before
        last = [(sequence.ids[-1], len(sequence.ids) - 1) for sequence in batch.sequences]
        assert list(zip(ids[layout.ends].tolist(), places[layout.ends].tolist(), strict=True)) == last


def test_a_first_answer_token_is_predicted_by_the_last_of_the_prompt_for_each_sequence() -> None:
    layout = lay_shared([group(1, 12, 2, 2, 2)])
    assert (layout.positions == 11).sum() == 3


def test_the_common_prefix_leaves_each_sequence_a_token_of_its_own() -> None:
    same = group(1, 12, 1).sequences[0]
    assert common_prefix((same, same)) == len(same) - 1
    assert common_prefix((same,)) == 0
    assert common_prefix(group(4, 0, 6, 5).sequences) == 0


def test_a_prompt_too_short_to_be_worth_it_is_not_shared() -> None:
    assert len(lay_shared([group(1, SHORTEST_PREFIX - 1, 3, 3)]).lengths) == 2
    assert len(lay_shared([group(1, SHORTEST_PREFIX, 3, 3)]).lengths) == 3


def test_a_change_in_one_answer_changes_no_other() -> None:
    model = tiny_llama().eval()
    left, right = group(1, 12, 5, 9), group(1, 12, 5, 9)
    changed = TokenSequence([*right.sequences[0].ids[:-1], 77], right.sequences[0].weights, 1, "row 1")
    right = Item((changed, right.sequences[1]))
    scores = [run(model, Batch((item,)), SHARED)[0] for item in (left, right)]
    assert torch.equal(scores[0][5:], scores[1][5:])
    assert not torch.equal(scores[0][:5], scores[1][:5])


def test_activation_checkpointing_computes_the_shared_prompt_again_rightly(batch: Batch) -> None:
    model = with_lora(tiny_llama())
    expected = run(model, batch, SHARED)[1]
    model.enable_input_require_grads()
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    found = run(model.train(), batch, SHARED)[1]
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **TOLERANCE)


def test_it_is_chosen_where_it_is_exact_and_switched_off_by_the_option() -> None:
    model = tiny_llama()
    chosen = choose_strategy(model, "auto", 0, "stages.0.dpo")
    assert chosen.share_prompts
    assert "computed once" in chosen.sharing_reason
    off = choose_strategy(model, "auto", 0, "stages.0.dpo", share_prompts=False)
    assert (off.share_prompts, off.sharing_reason) == (False, "batch.share_prompts is false")
    padded = choose_strategy(model, "always", 0, "stages.0.dpo")
    assert (padded.share_prompts, padded.sharing_reason) == (False, "a padded row holds one sequence")


@shows("batch.share_prompts")
def test_the_option_reaches_the_model_and_changes_no_number(run_training: Callable[..., Any]) -> None:
    def train(share: bool) -> tuple[Any, list[int]]:
        model, seen = tiny_llama(), []
        model.get_input_embeddings().register_forward_hook(lambda module, given, out: seen.append(given[0].numel()))
        items = [group(number, 14, 4, 6) for number in range(4)]
        return run_training(model, items, batch={"share_prompts": share, "rows": 2}, steps=2), seen

    (shared, few), (unshared, many) = train(True), train(False)
    assert (few, many) == ([48, 48], [76, 76])
    assert shared.values("loss") == pytest.approx(unshared.values("loss"), rel=1e-5)
    assert shared.result.facts["share_prompts"] is True
    assert unshared.result.facts["share_prompts_reason"] == "batch.share_prompts is false"


def test_values_of_sequences_that_share_a_prompt_are_those_of_the_sequences_alone(batch: Batch) -> None:
    model, need = tiny_llama().eval(), SequenceValues()

    def ends(strategy: Strategy) -> torch.Tensor:
        with prepared(model, strategy, autocast=False), torch.no_grad():
            layout = strategy.lay_out(batch)
            return Forward(model, batch, layout, (need,)).hidden(layout.ends)

    torch.testing.assert_close(ends(SHARED), ends(PADDED), **TOLERANCE)
