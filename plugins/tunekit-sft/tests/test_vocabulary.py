"""What the vocabulary says, against torch's own functions, and in no more memory than the logits have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tunekit_sft import vocabulary
from tunekit_sft.vocabulary import vocabulary_scores_


def smoothed(logits: Tensor, targets: Tensor, share: float) -> Tensor:
    """The loss of each token, [tokens]."""
    log_probs, means, _ = vocabulary_scores_(logits, targets)
    return -(1 - share) * log_probs - share * means


@pytest.mark.parametrize("chunk", [1, 300, 1 << 22])
@pytest.mark.parametrize("share", [0.1, 0.9])
def test_smoothed_targets_are_those_of_torch(share: float, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "CHUNK_ELEMENTS", chunk)
    torch.manual_seed(0)
    hidden, head = torch.randn(7, 5, requires_grad=True), torch.randn(50, 5)
    targets, scale = torch.randint(50, (7,)), torch.randn(7)

    def gradient(losses: Tensor) -> Tensor:
        (result,) = torch.autograd.grad((losses * scale).sum(), hidden)
        return result

    expected = torch.nn.functional.cross_entropy(hidden @ head.T, targets, reduction="none", label_smoothing=share)
    found = smoothed(hidden @ head.T, targets, share)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient(found), gradient(expected))


@pytest.mark.parametrize("chosen", [(0,), (1,), (0, 1)])
def test_gradients_are_those_of_small_differences(chosen: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 9, dtype=torch.float64, requires_grad=True), torch.randint(9, (4,))

    class Again(torch.autograd.Function):
        """The same with a backward that can be asked again and again, each time of a fresh forward."""

        @staticmethod
        def forward(ctx: Any, given: Tensor) -> tuple[Tensor, ...]:
            ctx.given = given.detach().clone()
            scores = vocabulary_scores_(given.detach().clone(), targets)
            return tuple(scores[at] for at in chosen)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Any:
            with torch.enable_grad():
                fresh = ctx.given.clone().requires_grad_()
                scores = vocabulary_scores_(fresh * 1.0, targets)
                return torch.autograd.grad([scores[at] for at in chosen], fresh, gradients)[0]

    assert torch.autograd.gradcheck(Again.apply, logits)


def test_the_likeliest_tokens_are_those_of_the_greatest_logit() -> None:
    torch.manual_seed(0)
    logits = torch.randn(30, 6)
    targets = torch.randint(6, (30,))
    expected = logits.argmax(-1) == targets
    found = vocabulary_scores_(logits, targets)[2]
    assert 0 < int(expected.sum()) < 30
    assert torch.equal(found, expected)


def test_the_gradient_lies_where_the_logits_lay() -> None:
    logits = torch.randn(6, 40, requires_grad=True) * 1.0
    given: list[Tensor] = []
    logits.register_hook(given.append)
    smoothed(logits, torch.arange(6), 0.1).sum().backward()
    assert given[0].data_ptr() == logits.data_ptr()


def test_logits_are_left_alone_where_no_gradient_is_wanted() -> None:
    logits = torch.randn(3, 10)
    before = logits.clone()
    vocabulary_scores_(logits, torch.arange(3))
    assert torch.equal(logits, before)


def test_no_supervised_token_gives_an_empty_result_with_a_graph() -> None:
    hidden = torch.randn(0, 4, requires_grad=True)
    smoothed(hidden @ torch.randn(4, 10), torch.zeros(0, dtype=torch.long), 0.1).sum().backward()
    assert hidden.grad is not None


def test_half_precision_logits_are_summed_in_fp32() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 1000, dtype=torch.bfloat16), torch.full((4,), 3)
    wide = logits.double()
    expected = torch.nn.functional.cross_entropy(wide, targets, reduction="none", label_smoothing=0.3)
    torch.testing.assert_close(smoothed(logits, targets, 0.3).double(), expected, rtol=1e-5, atol=1e-5)
