"""Products of frozen weights that are stored in some other form: made dense for each product, and kept by none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Dense = Callable[[Any], Tensor]
"""From a layer to its weight [out in]."""


class FrozenProduct(torch.autograd.Function):
    """y = x W^T + b for a frozen W that `dense` makes: once for the forward, and again for the backward.

    Left to autograd, every layer would keep its dense weight from the forward until the backward: a quantised model
    would take more memory than a dense one.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, dense: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        """`inputs` [..., in]; returns [..., out]."""
        ctx.dense, ctx.given = dense, inputs.dtype
        return torch.nn.functional.linear(inputs, dense(), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """dx = g W; neither W nor b trains."""
        return (gradient @ ctx.dense().to(gradient.dtype)).to(ctx.given), None, None


def product(layer: Any, inputs: Tensor, dense: Dense) -> Tensor:
    """What a frozen linear layer says."""
    out: Tensor = FrozenProduct.apply(inputs, partial(dense, layer), layer.bias)  # type: ignore[no-untyped-call]
    return out


def replace_products_(layers: Iterable[Any], dense: Dense) -> Callable[[], None]:
    """Have these layer instances compute this way; what is returned takes it back."""
    taken = list(layers)

    def forward(layer: Any, inputs: Tensor) -> Tensor:
        return product(layer, inputs, dense)

    for layer in taken:
        layer.forward = MethodType(forward, layer)  # of the layer, so that a deep copy has one of its own

    def undo() -> None:
        for layer in taken:
            del layer.forward

    return undo


class StoredLinear(torch.nn.Linear):
    """A frozen linear layer that holds its weight as named parts, and whose `weight` is made of them when asked for.

    `dense` is given the layer, and finds the parts in `layer.parts()`. PEFT adapts it as it does a linear layer.
    """

    def __init__(self, size: tuple[int, int], parts: Mapping[str, Tensor], bias: Tensor | None, dense: Dense) -> None:
        torch.nn.Module.__init__(self)
        self.out_features, self.in_features = size
        self.dense = dense
        for name, part in parts.items():
            self.register_buffer(self._kept_as(name), part.detach())
        self.part_names = tuple(parts)
        frozen = None if bias is None else torch.nn.Parameter(bias.detach(), requires_grad=False)
        self.register_parameter("bias", frozen)

    def parts(self) -> dict[str, Tensor]:
        """What the weight is made of, by the names it came under."""
        return {name: self.get_buffer(self._kept_as(name)) for name in self.part_names}

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """[out in], computed."""
        return self.dense(self)

    def forward(self, input: Tensor) -> Tensor:
        """`input` [..., in]; returns [..., out]."""
        return product(self, input, self.dense)

    @staticmethod
    def _kept_as(name: str) -> str:
        return "stored_weight" if name == "weight" else name


def dense_linear(weight: Tensor, bias: Tensor | None) -> torch.nn.Linear:
    """An ordinary frozen layer of this weight [out in]."""
    rows, columns = weight.shape
    with torch.device("meta"):
        layer = torch.nn.Linear(columns, rows, bias is not None)
    layer.weight = torch.nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias.detach().to(weight.dtype), requires_grad=False)
    return layer


def as_linear(layer: Any) -> Any:
    """A linear layer; of a `Conv1D`, which keeps its weight [in out], an ordinary one."""
    from transformers.pytorch_utils import Conv1D

    if not isinstance(layer, Conv1D):
        return layer
    return dense_linear(layer.weight.detach().t().contiguous(), layer.bias).train(layer.training)


def as_conv1d(layer: torch.nn.Linear) -> Any:
    """The other way round, so that weights can be saved and loaded as those of an architecture that has a `Conv1D`."""
    from transformers.pytorch_utils import Conv1D

    make: Any = Conv1D
    with torch.device("meta"):
        new = make(layer.out_features, layer.in_features)
    new.weight = torch.nn.Parameter(layer.weight.detach().t().contiguous(), requires_grad=False)
    new.bias = layer.bias
    return new
