"""NEFTune: noise of the right size for each sequence, in training only, under every wrapper."""

from __future__ import annotations

import math

import pydantic
import pytest
import torch
from transformers.integrations.neftune import neftune_post_forward_hook

from tunekit.testing import MIXED, run_context, tiny_bundle
from tunekit_lora import Lora
from tunekit_neftune import Neftune
from tunekit_neftune.noise import sequence_lengths

LENGTHS = [3, 40, 1, 20]
WIDTH = 128


def tokens(*shape):
    return torch.randint(3, 500, shape, generator=torch.Generator().manual_seed(1))


def end_to_end(lengths=LENGTHS):
    """One row with sequences laid one after the other, positions restarting."""
    return {
        "input_ids": tokens(1, sum(lengths)),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
    }


def noise(model, seed=0, **arguments):
    """float32[batch seq dim]: what training mode adds to the embeddings."""
    seen = []
    layer = next(m for name, m in model.named_modules() if name.endswith("layers.0"))
    handle = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().float()))
    for mode in (True, False):
        torch.manual_seed(seed)
        with torch.no_grad():
            model.train(mode)(**arguments)
    handle.remove()
    return seen[0] - seen[1]


def patched(alpha=5.0, **changes):
    bundle = tiny_bundle(**changes)
    return bundle, Neftune(alpha=alpha).tunekit_patch(bundle=bundle)


def assert_size(found, length, alpha=5.0):
    """Uniform noise of `length` tokens: within its bound, and spread as a uniform distribution is."""
    bound = alpha / math.sqrt(length * WIDTH)
    assert found.abs().max() <= bound * (1 + 1e-4)
    # 128 numbers at the least, whose root mean square is known to about 4%.
    assert found.square().mean().sqrt().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
    assert abs(found.mean().item()) < bound / 4


@pytest.mark.parametrize("alpha", [1.0, 5.0, 15.0])
def test_one_sequence_gets_the_papers_noise(alpha):
    bundle, _ = patched(alpha)
    assert_size(noise(bundle.model, input_ids=tokens(1, 30)), 30, alpha)


def test_one_sequence_gets_what_transformers_own_implementation_adds():
    ours, theirs = patched()[0].model, tiny_bundle().model
    embedding = theirs.get_input_embeddings()
    embedding.neftune_noise_alpha = 5.0
    embedding.register_forward_hook(neftune_post_forward_hook)
    ids = tokens(2, 30)
    torch.testing.assert_close(noise(ours, input_ids=ids), noise(theirs, input_ids=ids), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("borders", [False, True])
def test_sequences_laid_end_to_end_each_get_noise_for_their_own_length(borders):
    bundle, _ = patched()
    arguments = end_to_end()
    if borders:
        cumulated = torch.tensor([0, *LENGTHS], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        longest = max(LENGTHS)
        arguments |= {"cu_seq_lens_q": cumulated, "cu_seq_lens_k": cumulated}
        arguments |= {"max_length_q": longest, "max_length_k": longest}
    found = noise(bundle.model, **arguments)
    for length, part in zip(LENGTHS, found[0].split(LENGTHS), strict=True):
        assert_size(part, length)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_sequences_get_noise_for_the_length_without_padding(side):
    bundle, _ = patched()
    mask = torch.zeros(3, 32, dtype=torch.long)
    for row, length in enumerate((4, 32, 9)):
        mask[row, slice(0, length) if side == "right" else slice(32 - length, 32)] = 1
    found = noise(bundle.model, input_ids=tokens(3, 32), attention_mask=mask)
    for row, length in enumerate((4, 32, 9)):
        assert_size(found[row][mask[row].bool()], length)


def test_noise_is_the_same_end_to_end_and_one_by_one_in_size_however_the_borders_are_told():
    positions = end_to_end()["position_ids"]
    borders = torch.tensor([0, *LENGTHS]).cumsum(0)
    expected = torch.tensor([float(length) for length in LENGTHS for _ in range(length)])[None]
    assert torch.equal(sequence_lengths(position_ids=positions), expected)
    assert torch.equal(sequence_lengths(cu_seq_lens_q=borders), expected)
    assert torch.equal(sequence_lengths(position_ids=torch.arange(7)[None]), torch.full((1, 7), 7.0))
    assert sequence_lengths() is None


def test_sequences_of_one_token_each_are_told_apart():
    assert torch.equal(sequence_lengths(position_ids=torch.zeros(1, 5, dtype=torch.long)), torch.ones(1, 5))


def test_every_row_of_positions_is_read_by_itself():
    positions = torch.tensor([[0, 1, 2, 3], [0, 1, 0, 0]])
    expected = torch.tensor([[4.0, 4.0, 4.0, 4.0], [2.0, 2.0, 1.0, 1.0]])
    assert torch.equal(sequence_lengths(position_ids=positions), expected)


def test_evaluation_is_free_of_noise():
    bundle, _ = patched()
    ids = tokens(2, 9)
    assert torch.equal(bundle.model.eval()(ids).logits, tiny_bundle().model.eval()(ids).logits)


def test_each_step_draws_new_noise_and_the_same_state_of_the_generator_the_same():
    bundle, _ = patched()
    arguments = end_to_end()
    first = noise(bundle.model, seed=1, **arguments)
    assert torch.equal(first, noise(bundle.model, seed=1, **arguments))
    assert not torch.equal(first, noise(bundle.model, seed=2, **arguments))


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["embed_tokens"]}, {"targets": ["embed_tokens"]}])
def test_it_acts_once_under_an_adapter_and_undoing_ends_it(tmp_path, options):
    bundle, report = patched()
    lora = Lora(**options)
    model = lora.tunekit_attach_adapter(bundle=bundle, context=run_context(lora, folder=tmp_path)).model
    found = noise(model, **end_to_end())
    for length, part in zip(LENGTHS, found[0].split(LENGTHS), strict=True):
        assert_size(part, length)
    report.undo()
    assert noise(model, **end_to_end()).abs().max() == 0


def test_it_keeps_the_dtype_of_a_model_in_bfloat16():
    bundle, _ = patched(precision=MIXED)
    embedded = bundle.model.train().get_input_embeddings()(tokens(1, 30))
    assert embedded.dtype == torch.bfloat16
    assert noise(bundle.model, **end_to_end()).abs().max() > 0


def test_lengths_of_one_batch_are_not_used_for_the_next():
    bundle, _ = patched()
    noise(bundle.model, **end_to_end([2, 28]))
    with torch.no_grad():
        torch.manual_seed(0)
        embedding = bundle.model.train().get_input_embeddings()
        ids = tokens(1, 30)
        alone = embedding(ids) - embedding.weight[ids]
    assert_size(alone, 30)


@pytest.mark.parametrize("options", [{"alpha": 0}, {"alpha": -1.0}, {"alfa": 5}])
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(pydantic.ValidationError, match=next(iter(options))):
        Neftune(**options)


def test_the_report_says_what_was_done():
    assert patched(7.5)[1].summary == "noise of at most 7.5/sqrt(length x width) on the embeddings while training"
