"""One call of a variable-length kernel for all segments, against attention written out segment by segment."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tunekit_train import varlen
from tunekit_train.segments import segments_attention

ALONE = ([5, 9, 3], [5, 9, 3])
SHARED = ([6, 4, 5, 7, 3, 2], [6, 10, 11, 7, 10, 9])
"""A prompt of 6 with two answers behind it, then one of 7 with two."""
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
"""fp32: the same sums in another order."""


def written_out(
    query: Tensor, key: Tensor, value: Tensor, cu_q: Tensor, cu_k: Tensor, *sizes: int, **options: Any
) -> Tensor:
    """What the kernel is documented to compute: [seq, heads, head_dim], the diagonal at the last query and key."""
    left, right = options["window_size"]
    assert right == 0, "causal"
    groups, scale = query.shape[1] // key.shape[1], options["scale"] or query.shape[-1] ** -0.5
    assert options["enable_gqa"] == (groups > 1)
    out = []
    for (q_from, q_to), (k_from, k_to) in zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist()), strict=True):
        rows, keys = q_to - q_from, k_to - k_from
        assert rows <= sizes[0]
        assert keys <= sizes[1]
        k, v = (each[k_from:k_to].repeat_interleave(groups, 1) for each in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query[q_from:q_to], k) * scale
        distance = torch.arange(rows)[:, None] + (keys - rows) - torch.arange(keys)[None]
        hidden = (distance < 0) | ((distance > left) if left >= 0 else torch.zeros(rows, keys, dtype=torch.bool))
        out.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), v))
    return torch.cat(out)


def tensors(lengths: list[int], device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Query with 4 heads, key and value with 2, [1, heads, seq, head_dim]."""
    dice = torch.Generator().manual_seed(0)
    shapes = [(1, heads, sum(lengths), 16) for heads in (4, 2, 2)]
    return tuple(torch.randn(shape, generator=dice).to(device, dtype).requires_grad_() for shape in shapes)


def by_segments(parts: tuple[Tensor, ...], lengths: list[int], keys: list[int], window: int | None) -> Tensor:
    """The engine's own loop over segments."""
    borders = [torch.tensor((0, *each)).cumsum(0) for each in (lengths, keys)]
    options = {"sliding_window": window, "cu_seq_lens_q": borders[0], "cu_seq_lens_k": borders[1]}
    out, _ = segments_attention(torch.nn.Identity(), *parts, None, **options)
    return out


def with_gradients(out: Tensor, parts: tuple[Tensor, ...]) -> list[Tensor]:
    torch.manual_seed(1)
    return [out, *torch.autograd.grad((out.float() * torch.randn(out.shape).to(out.device)).sum(), parts)]


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(("lengths", "keys"), [ALONE, SHARED], ids=["alone", "shared prompts"])
def test_keys_and_borders_given_to_the_kernel_say_what_the_loop_over_segments_does(
    lengths, keys, window, monkeypatch
) -> None:
    monkeypatch.setattr(varlen, "_kernel", lambda: written_out)
    parts = tensors(lengths)
    found = with_gradients(varlen.attend(parts, lengths, keys, window, None), parts)
    for one, other in zip(found, with_gradients(by_segments(parts, lengths, keys, window), parts), strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE)


def test_a_segment_continues_the_last_that_stood_alone() -> None:
    assert varlen.keys_at([2, 1, 2], [2, 3, 4]).tolist() == [0, 1, 0, 1, 2, 0, 1, 3, 4]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "this is a cpu"),
        ({"device": "meta-cuda", "dtype": torch.float32}, "half precision"),
        ({"device": "meta-cuda", "explicit": True}, "neither soft caps nor sinks"),
        ({"device": "meta-cuda", "dropout": 0.1}, "no dropout"),
        ({"device": "meta-cuda", "head": 320}, "multiples of 8 up to 256"),
    ],
)
def test_what_the_kernel_cannot_do_is_left_to_the_loop_and_said(options, said) -> None:
    class Shape:
        device = torch.device("cuda" if options.get("device") else "cpu")
        dtype = options.get("dtype", torch.bfloat16)
        shape = (1, 4, 8, options.get("head", 64))

    reason = varlen.obstacle(Shape(), options.get("dropout", 0.0), options.get("explicit", False))  # type: ignore[arg-type]
    assert reason is not None
    assert said in reason


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(("lengths", "keys"), [ALONE, SHARED], ids=["alone", "shared prompts"])
def test_the_kernel_of_the_device_computes_what_is_written_out(lengths, keys, window) -> None:
    parts = tensors(lengths, "cuda", torch.bfloat16)
    assert varlen.obstacle(parts[0], 0.0, False) is None
    found = with_gradients(by_segments(parts, lengths, keys, window), parts)
    exact = tuple(part.detach().float().cpu().requires_grad_() for part in parts)
    for one, other in zip(found, with_gradients(by_segments(exact, lengths, keys, window), exact), strict=True):
        torch.testing.assert_close(one.float().cpu(), other, rtol=2e-2, atol=2e-2)  # bf16 has 8 bits of mantissa
