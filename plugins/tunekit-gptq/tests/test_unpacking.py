"""Packed integers come out as they were put in, bit by bit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tunekit.testing import save_tiny_model
from tunekit_gptq.rounding import make_checkpoint, pack
from tunekit_gptq.unpacking import awq_weight, gptq_weight, unpack


def words_of(numbers: list[int], bits: int) -> list[int]:
    """One long number, the first value lowest, cut into signed words of 32 bits."""
    whole = sum(number << (bits * place) for place, number in enumerate(numbers))
    words = [(whole >> (32 * place)) & 0xFFFFFFFF for place in range(len(numbers) * bits // 32)]
    return [word - (1 << 32) if word >> 31 else word for word in words]


def draw(*shape: int, bits: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 2**bits, shape, generator=torch.Generator().manual_seed(seed))


def packed(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Along the last axis."""
    return torch.tensor([words_of(row, bits) for row in numbers.tolist()], dtype=torch.int32)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_integers_of_any_width_come_out_of_the_words_they_were_put_into(bits):
    numbers = draw(5, 96, bits=bits)
    assert torch.equal(unpack(packed(numbers, bits), bits), numbers.to(torch.uint8))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("ordered", [True, False])
def test_a_gptq_weight_is_scale_times_integer_less_zero_of_the_group_of_its_row(bits, ordered):
    inputs, outputs, groups = 64, 32, 4
    numbers, zeros = draw(inputs, outputs, bits=bits), draw(groups, outputs, bits=bits, seed=1)
    scales = torch.rand(groups, outputs, generator=torch.Generator().manual_seed(2)).half()
    index = torch.arange(inputs) // 16 if ordered else draw(inputs, bits=2, seed=3)
    layer = SimpleNamespace(
        qweight=packed(numbers.t(), bits).t().contiguous(), qzeros=packed(zeros, bits), scales=scales,
        g_idx=index.int(), bits=bits, out_features=outputs,
    )  # fmt: skip
    found = gptq_weight(layer)
    for row in range(inputs):
        group = int(index[row])
        assert torch.equal(found[row], (numbers[row] - zeros[group]).half() * scales[group])


def test_an_awq_weight_has_its_columns_back_in_their_order():
    inputs, outputs, groups = 64, 24, 2
    numbers, zeros = draw(inputs, outputs, bits=4), draw(groups, outputs, bits=4, seed=1)
    scales = torch.rand(groups, outputs, generator=torch.Generator().manual_seed(2)).half()
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # of the paper's code: which column comes first in a word, which second

    def put(rows):
        return packed(rows.unflatten(1, (-1, 8))[..., order].flatten(1), 4)

    layer = SimpleNamespace(qweight=put(numbers), qzeros=put(zeros), scales=scales)
    expected = (numbers - zeros.repeat_interleave(32, 0)).half() * scales.repeat_interleave(32, 0)
    assert torch.equal(awq_weight(layer), expected)


def test_integers_of_4_bits_are_packed_as_one_long_number():
    numbers = draw(5, 96, bits=4)
    assert torch.equal(pack(numbers), packed(numbers, 4))


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_checkpoint_that_is_rounded_for_tests_is_half_a_step_from_the_dense_one(method, tmp_path):
    dense = save_tiny_model(tmp_path / "dense")
    made = load_file(make_checkpoint(dense, tmp_path / method, method) / "model.safetensors")
    for name, weight in load_file(dense / "model.safetensors").items():
        if "_proj" not in name:
            assert torch.equal(made[name], weight)
            continue
        parts = {part: made[name.replace("weight", part)] for part in ("qweight", "qzeros", "scales")}
        if method == "gptq":
            zeros = pack(unpack(parts["qzeros"], 4).long() + 1)  # the layout v2, to which layers are brought
            index = made[name.replace("weight", "g_idx")]
            layer = SimpleNamespace(**{**parts, "qzeros": zeros}, g_idx=index, bits=4, out_features=len(weight))
            found = gptq_weight(layer)
        else:
            found = awq_weight(SimpleNamespace(**parts))
        step = parts["scales"].float().repeat_interleave(32, 0)
        assert ((found.float().t() - weight).abs() <= 0.51 * step.t() + 2e-3 * weight.abs().max()).all()
