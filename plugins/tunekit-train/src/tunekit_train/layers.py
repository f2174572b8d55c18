"""The stack of layers inside a model, and running a part of it: what is below is given, or what is above left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .forward import base_model


def find_layers(model: Any) -> nn.ModuleList | None:
    """The stack with as many layers as the config says, or None where there is none."""
    base = base_model(model)
    count = base.config.get_text_config().num_hidden_layers
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else None  # a vision tower may have as many layers
    stacks = (
        module for module in (decoder or base).modules() if isinstance(module, nn.ModuleList) and len(module) == count
    )
    return next(stacks, None)


def first_trained(layers: nn.ModuleList) -> int:
    """The place of the first layer of which anything trains; their number where none does."""
    trains = (any(each.requires_grad for each in layer.parameters()) for layer in layers)
    return next((place for place, does in enumerate(trains) if does), len(layers))


@contextmanager
def given(layers: nn.ModuleList, count: int, hidden: Tensor) -> Iterator[None]:
    """Have the first `count` layers return `hidden` [batch, seq, hidden size] and compute nothing.

    Everything else is the model's own: embeddings, masks and positions are made as always, and each layer above finds
    the ones that belong to its place.
    """
    with ExitStack() as stack:
        for layer in layers[: count - 1]:
            stack.enter_context(instead(layer, _pass_on))
        stack.enter_context(instead(layers[count - 1], lambda *_, **__: hidden))
        yield


@contextmanager
def lower_only(layers: nn.ModuleList, count: int) -> Iterator[list[Tensor]]:
    """Compute the first `count` layers and no other; what comes out of them is put in the list that is yielded."""
    taken: list[Tensor] = []
    handle = layers[count - 1].register_forward_hook(lambda module, inputs, output: taken.append(output))
    with ExitStack() as stack:
        stack.callback(handle.remove)
        for layer in layers[count:]:
            stack.enter_context(instead(layer, _pass_on))
        yield taken


def listened_to(module: nn.Module) -> bool:
    """Whether a call of this module does more than its class says, which is lost where it is not called."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )


def _pass_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


@contextmanager
def instead(layer: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another forward for this one module."""
    assert "forward" not in vars(layer), "a layer whose forward is replaced already is refused beforehand"
    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


def relative_difference(left: Tensor, right: Tensor) -> float:
    """|left - right| / |right|, in fp32."""
    wide = right.float()
    return float((left.float() - wide).norm() / wide.norm().clamp(min=torch.finfo(torch.float32).tiny))
