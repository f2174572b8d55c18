"""Fused experts of a skeleton: the shapes that they compute and keep, on the meta device."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.integrations.moe import ExpertsInterface

NAME = "tunekit_shapes"


def shapes_experts(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Experts [experts, ...] for `hidden_states` [tokens, hidden size], of which each token chooses `top_k`.

    The kernels of transformers look at which expert was chosen, and that for bf16 alone on the meta device. Shapes do
    not depend on it: each chosen pair of token and expert is a row, and all rows go through the first expert.
    """
    tokens, chosen = top_k_index.shape
    rows = hidden_states.repeat_interleave(chosen, dim=0)  # [tokens x top_k, hidden size]
    up = module.gate_up_proj if module.has_gate else module.up_proj
    out = _product(rows, up, module.is_transposed)
    out = module._apply_gate(out) if module.has_gate else module.act_fn(out)
    out = _product(out, module.down_proj, module.is_transposed)
    weighted: Tensor = out * top_k_weights.reshape(-1, 1)
    return weighted.view(tokens, chosen, -1).sum(dim=1).to(hidden_states.dtype)


def _product(rows: Tensor, weights: Tensor, transposed: bool) -> Tensor:
    first = weights[0]
    return rows @ (first if transposed else first.t())


ExpertsInterface.register(NAME, shapes_experts)


def with_shapes_of_experts_(model: Any) -> int:
    """Have the fused experts of this skeleton compute shapes; returns the numbers kept for their low-rank updates.

    PEFT adds an update to all weights of a block for each forward, and the sum is kept for the backward. It asks for
    autocast on the device, which the meta device has not, so that the skeleton computes without updates.
    """
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation(NAME)
    try:
        from peft.tuners.lora import ParamWrapper
    except ImportError:  # nobody attached an adapter with PEFT then
        return 0
    updated: list[Any] = [module for module in model.modules() if isinstance(module, ParamWrapper)]
    for module in updated:
        module.forward = module.base_layer.__call__
    return sum(module.get_param().numel() for module in updated)
