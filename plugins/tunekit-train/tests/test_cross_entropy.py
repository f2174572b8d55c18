"""The in-place cross-entropy against torch's own."""

from __future__ import annotations

import pytest
import torch

from tunekit_train import cross_entropy
from tunekit_train.cross_entropy import token_log_probs_


@pytest.mark.parametrize("chunk", [1, 300, 1 << 22])
def test_values_and_gradients_are_those_of_log_softmax(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", chunk)
    torch.manual_seed(0)
    hidden, head = torch.randn(7, 5, requires_grad=True), torch.randn(50, 5)
    targets, scale = torch.randint(50, (7,)), torch.randn(7)

    def gradient(log_probs: torch.Tensor) -> torch.Tensor:
        (result,) = torch.autograd.grad((log_probs * scale).sum(), hidden)
        return result

    expected = (hidden @ head.T).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    found = token_log_probs_(hidden @ head.T, targets)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient(found), gradient(expected))


def test_no_second_buffer_of_the_logits_is_made() -> None:
    logits = torch.randn(6, 40, requires_grad=True) * 1.0
    loss = token_log_probs_(logits, torch.arange(6))
    written = logits.detach().clone()
    assert torch.allclose(written.sum(-1), torch.zeros(6), atol=1e-5)  # softmax - onehot lies where the logits lay
    loss.sum().backward()


def test_logits_are_left_alone_where_no_gradient_is_wanted() -> None:
    logits = torch.randn(3, 10)
    before = logits.clone()
    token_log_probs_(logits, torch.arange(3))
    assert torch.equal(logits, before)


def test_no_supervised_token_gives_an_empty_result_with_a_graph() -> None:
    hidden = torch.randn(0, 4, requires_grad=True)
    token_log_probs_(hidden @ torch.randn(4, 10), torch.zeros(0, dtype=torch.long)).sum().backward()
    assert hidden.grad is not None


def test_half_precision_logits_are_summed_in_fp32() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 1000, dtype=torch.bfloat16)
    expected = logits.double().log_softmax(-1)[:, 3]
    torch.testing.assert_close(token_log_probs_(logits, torch.full((4,), 3)).double(), expected, rtol=1e-5, atol=1e-5)
