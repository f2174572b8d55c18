"""How much of what this machine can multiply a step's products reach."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from .forward import base_model
from .layers import find_layers


@dataclass(frozen=True)
class Work:
    """Floating-point operations of training on one token, and on one supervised token besides.

    Of a matrix with n entries that multiplies a token, 2n in the forward; 2n more for the gradient of its input, where
    something before it trains; 2n more for its own gradient, where it trains. The head multiplies supervised tokens
    only. Of experts, those chosen for a token count. Not counted: the products of attention, padding, what activation
    checkpointing computes again, and whatever is no product of matrices. A prompt that answers share, and layers that
    are kept, count as often as they are computed. As model FLOPs in PaLM, arXiv:2204.02311, there without the rest.
    """

    per_token: float
    per_supervised: float

    @classmethod
    def of(cls, model: Any, skipped: int = 0) -> Work:
        """The work on this model, whose `skipped` lowest blocks are not computed."""
        base = base_model(model)
        head = base.get_output_embeddings()
        left_out = {id(inside) for block in (find_layers(model) or ())[:skipped] for inside in block.modules()}
        embedding = base.get_input_embeddings()
        flows = any(parameter.requires_grad for parameter in embedding.parameters())
        inside_head = {id(inside) for inside in head.modules()} if head is not None else set()
        totals = [0.0, 0.0]
        for module in base.modules():
            for entries, trains in () if id(module) in left_out else _matrices(module, base.config):
                totals[id(module) in inside_head] += 2 * entries * (1 + flows + trains)
                flows = flows or trains
        return cls(*totals)

    def operations(self, tokens: int, supervised: int) -> float:
        """The operations of training on so many tokens, of which so many are supervised."""
        return tokens * self.per_token + supervised * self.per_supervised


def _matrices(module: Any, config: Any) -> Iterator[tuple[float, bool]]:
    """The matrices of a module itself that multiply tokens: entries used for each token, and whether they train."""
    own = dict(module.named_parameters(recurse=False))
    if hasattr(module, "in_features") and hasattr(module, "out_features") and "weight" in own:
        yield module.in_features * module.out_features, own["weight"].requires_grad  # packed weights hold fewer
        return
    if isinstance(module, torch.nn.Embedding):
        return
    text = config.get_text_config()
    chosen = getattr(text, "num_experts_per_tok", None)
    for weight in own.values():
        if weight.ndim == 2:
            yield weight.numel(), weight.requires_grad
        if weight.ndim == 3:
            yield weight.numel() * min(1.0, (chosen or len(weight)) / len(weight)), weight.requires_grad


@cache
def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a product of two square matrices, measured once for each process.

    The best of three, of 1024 rows on a CPU and 4096 elsewhere; each entry of the result counts 2 x rows.
    """
    size = 1024 if device == "cpu" else 4096
    left, right = (torch.full((size, size), 0.5, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(left)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        torch.mm(left, right, out=out)
        if device != "cpu":
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2.0 * size**3 / min(seconds[1:])
