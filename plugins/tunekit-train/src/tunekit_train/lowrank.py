"""LoRA linear layers as one product each, with a backward written by hand.

LoRA: *Low-Rank Adaptation of Large Language Models*, arXiv:2106.09685: y = x W^T + s (x A^T) B^T + b.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunekit.values import Precision

from .config import LoraProduct
from .layers import listened_to

DTYPES = frozenset({torch.float32, torch.bfloat16})
"""What products are computed in here. The tests hold these against PEFT's own layer."""


class LowRankLinear(torch.autograd.Function):
    """y = x W^T + s (x A^T) B^T + b in the dtype of W's product, for a frozen W and b.

    `inputs` [..., in], `weight` [out, in], `bias` [out] or None, `down` (A) [rank, in], `up` (B) [out, rank]; returns
    [..., out] in `dtype`. What is small is computed transposed, [rank, tokens] and [rank, out], and copied where it is
    added: measured on the CPU, thin products are up to four times as fast along their long side, additions across it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
        dtype: torch.dtype,
    ) -> Tensor:
        """Add the low-rank part into the output of the one large product."""
        cast = inputs.to(dtype)
        rows = cast.reshape(-1, cast.shape[-1])  # [tokens, in]
        small = down.to(dtype)
        scaled = torch.mul(up.t(), scale, out=torch.empty(up.shape[::-1], dtype=dtype, device=up.device))  # [rank, out]
        reduced = torch.mm(small, rows.t())  # x A^T, [rank, tokens]
        out = torch.nn.functional.linear(rows, weight.to(dtype), None if bias is None else bias.to(dtype))
        out.addmm_(reduced.t().contiguous(), scaled)
        needs_inputs, needs_down, needs_up = (ctx.needs_input_grad[at] for at in (0, 3, 4))
        ctx.save_for_backward(
            cast if needs_down else None,
            weight if needs_inputs else None,
            small if needs_inputs else None,
            scaled if needs_inputs or needs_down else None,
            reduced if needs_up else None,
        )
        ctx.scale, ctx.given, ctx.trained = scale, inputs.dtype, (down.dtype, up.dtype)
        return out.view(*inputs.shape[:-1], out.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """dx = g W + s (g B) A in one buffer, dA = s (g B)^T x, dB = s g^T (x A^T)."""
        cast, weight, small, scaled, reduced = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])  # [tokens, out]
        inputs = down = up = None
        if scaled is not None:
            backwards = torch.mm(scaled, rows.t())  # s B^T g^T, [rank, tokens]
        if weight is not None:
            inputs = torch.mm(rows, weight.to(rows.dtype))
            inputs.addmm_(backwards.t().contiguous(), small)
            inputs = inputs.view(*gradient.shape[:-1], weight.shape[1]).to(ctx.given)
        if cast is not None:
            down = torch.mm(backwards, cast.reshape(-1, cast.shape[-1])).to(ctx.trained[0])
        if reduced is not None:
            up = torch.mm(reduced, rows).to(ctx.trained[1]).mul_(ctx.scale).t()  # [out, rank]
        return inputs, None, None, down, up, None, None


@dataclass(frozen=True)
class Taken:
    """How many LoRA layers are computed as one product, and how many are left to PEFT for which reason."""

    layers: int
    left: Mapping[str, int]

    def facts(self) -> dict[str, Any]:
        """For the record."""
        return {"lora_product_layers": self.layers, "lora_product_left": dict(self.left)}


@contextmanager
def one_product(model: Any, choice: LoraProduct, precision: Precision, traced: bool = False) -> Iterator[Taken]:
    """Compute the LoRA layers of this model instance as one product each, and put every layer back afterwards.

    Each layer decides anew at every call whether it may, and is PEFT's own where it may not: with the adapter switched
    off or merged, with several active, with dropout, or where a hook listens inside. What is yielded says how it is
    at the start, in training.
    """
    layers = _lora_layers(model)
    never = "compute.lora_product is never" if choice == "never" else None
    never = "compute.compile traces PEFT's own" if traced else never
    replaced = [layer for layer in layers if never is None and _structure(layer) is None]
    reasons = [never or _structure(layer) or _obstacle(layer) or _in_training(layer, precision) for layer in layers]
    left = Counter(reason for reason in reasons if reason is not None)
    for layer in replaced:
        layer.forward = MethodType(forward, layer)  # of the layer, so that a deep copy has one of its own
    try:
        yield Taken(len(layers) - left.total(), left)
    finally:
        for layer in replaced:
            del layer.forward


def forward(layer: Any, inputs: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """The forward of a PEFT LoRA layer: one product where that is exact, else PEFT's own."""
    if not arguments and not options and _obstacle(layer) is None:
        (name,) = layer.active_adapters
        base, down, up = layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight
        dtype = _product_dtype(inputs, base.weight, down, up)
        if dtype is not None and not _drops(layer.lora_dropout[name]):
            out: Tensor = LowRankLinear.apply(  # type: ignore[no-untyped-call]
                inputs, base.weight, base.bias, down, up, layer.scaling[name], dtype
            )
            return out
    result: Tensor = type(layer).forward(layer, inputs, *arguments, **options)
    return result


def _lora_layers(model: Any) -> list[Any]:
    try:
        from peft.tuners.lora import LoraLayer
    except ImportError:  # nobody attached an adapter with PEFT then
        return []
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _structure(layer: Any) -> str | None:
    """Why this layer can never be one product, or None."""
    from peft.tuners.lora import Linear

    if type(layer) is not Linear:
        return f"a LoRA layer of type {type(layer).__name__}"
    if type(layer.base_layer) is not torch.nn.Linear:
        return f"its base is a {type(layer.base_layer).__name__}"
    if "forward" in vars(layer):
        return "its forward is replaced already"
    return None


def _obstacle(layer: Any) -> str | None:
    """Why this layer is not one product as it is now, or None."""
    if layer.disable_adapters or layer.merged:
        return "its adapter is switched off or merged"
    if len(layer.active_adapters) != 1:
        return "not exactly one adapter is active"
    (name,) = layer.active_adapters
    if name not in layer.lora_A:
        return "the active adapter does not change it"
    if name in layer.lora_variant:
        return f"its adapter is a {type(layer.lora_variant[name]).__name__}"
    base, down, up = layer.base_layer, layer.lora_A[name], layer.lora_B[name]
    if type(down) is not torch.nn.Linear or type(up) is not torch.nn.Linear or up.bias is not None:
        return "its adapter is more than two matrices"
    if base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad):
        return "its base trains"
    if any(listened_to(module) for module in (base, down, up, layer.lora_dropout[name])):
        return "a hook listens inside it"
    if not all(_is_whole(module) for module in (base, down, up)):
        return "its weights are not whole in this process"
    return None


def _in_training(layer: Any, precision: Precision) -> str | None:
    """Why this layer, without another obstacle, is not one product in training with this precision, or None."""
    (name,) = layer.active_adapters
    if getattr(layer.lora_dropout[name], "p", 0.0) > 0:
        return "it has dropout"
    dtypes = {each.weight.dtype for each in (layer.base_layer, layer.lora_A[name], layer.lora_B[name])}
    if not precision.autocast and len(dtypes) > 1:
        return "its weights are of several dtypes, and nothing casts them"
    products = getattr(torch, precision.compute) if precision.autocast else dtypes.pop()
    return None if products in DTYPES else f"its products are in {products}"


def _drops(dropout: Any) -> bool:
    return bool(dropout.training) and getattr(dropout, "p", 0.0) > 0


def _is_whole(module: Any) -> bool:
    """Whether the weight is a plain tensor with all its entries, and not a shard that a hook gathers."""
    weight = module.weight
    plain = type(weight) in (torch.nn.Parameter, Tensor) and not hasattr(weight, "ds_id")  # DeepSpeed's mark
    return plain and weight.shape == (module.out_features, module.in_features)


def _product_dtype(inputs: Tensor, *weights: Tensor) -> torch.dtype | None:
    """The one dtype that PEFT's layer would compute in, or None where it would mix several or a foreign one."""
    device = inputs.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    elif all(weight.dtype == inputs.dtype for weight in weights):
        dtype = inputs.dtype
    else:
        return None
    return dtype if dtype in DTYPES else None
