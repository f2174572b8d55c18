"""Starting the adapters of a model, in place, before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tunekit.errors import TunekitError
from tunekit.values import Context
from tunekit_lora.residual import (
    Factors,
    adapted_layers,
    adapter_of,
    begin_,
    dense_weight,
    factors_of,
    refuse_narrow,
    refuse_odd,
    remember_,
)

from .checks import room_for_two
from .measuring import examples, gradients, grouped, watch_inputs
from .starts import corda_factors, loraga_factors, olora_factors, orthogonal_factors, principal_directions

if TYPE_CHECKING:
    from . import CordaConfig, LoragaConfig


def start_orthogonal_(model: Any) -> Any:
    """Draw A and B whose product is zero."""
    refuse_odd(model, "orthogonal")
    for _, layer in adapted_layers(model):
        down, up = factors_of(model, layer)
        drawn = orthogonal_factors(up.shape[0], down.shape[1], len(down))
        down.data, up.data = (new.to(old.device, old.dtype) for new, old in zip(drawn, (down, up), strict=True))
    return model


def start_olora_(model: Any) -> Any:
    """Take the first part of a QR decomposition out of each weight."""
    refuse_odd(model, "olora")
    refuse_narrow(model, "olora")
    for _, layer in adapted_layers(model):
        begin_(model, layer, olora_factors(dense_weight(layer), layer.r[adapter_of(model)]))
    return remember_(model)


def start_eva_(model: Any, context: Context, items: int) -> Any:
    """Give A the directions in which the inputs of the layer vary most; B stays zero."""
    refuse_odd(model, "eva")
    sequences, layers = examples(context, items, "eva"), dict(adapted_layers(model))
    for names in grouped({name: 8 * layer.in_features**2 for name, layer in layers.items()}):
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        counts = dict.fromkeys(names, 0)

        def add(
            name: str, rows: Tensor, sums: dict[str, tuple[Tensor, Tensor]] = sums, counts: dict[str, int] = counts
        ) -> None:
            wide = rows.double()  # the covariance is a difference of large sums
            total, products = sums.get(name, (0, 0))
            sums[name] = (total + wide.sum(0), products + wide.T @ wide)
            counts[name] += len(rows)

        watch_inputs(model, {name: layers[name] for name in names}, sequences, context.precision, add)
        for name in names:
            down, _ = factors_of(model, layers[name])
            if counts[name] <= len(down):
                remedy = "raise use.eva.items, or lower use.lora.rank"
                what = f"eva has seen {counts[name]} tokens, too few for {len(down)} directions in {name}"
                raise TunekitError(what, remedy)
            found = principal_directions(*sums.pop(name), counts[name], len(down))
            down.data = found.to(down.device, down.dtype)
    return model


def start_corda_(model: Any, context: Context, config: CordaConfig) -> Any:
    """Take the part out of each weight that the covariance of its layer's inputs says."""
    refuse_odd(model, "corda")
    refuse_narrow(model, "corda")
    sequences, layers = examples(context, config.items, "corda"), dict(adapted_layers(model))
    starts: dict[str, Factors] = {}
    for names in grouped({name: 4 * layer.in_features**2 for name, layer in layers.items()}):
        covariances: dict[str, Tensor] = {}

        def add(name: str, rows: Tensor, covariances: dict[str, Tensor] = covariances) -> None:
            # The authors' code: each example is divided by its largest input, so that none outweighs the others.
            scaled = rows / rows.max().abs().clamp_min(torch.finfo(rows.dtype).tiny)
            covariances[name] = covariances.get(name, 0) + scaled.T @ scaled

        watch_inputs(model, {name: layers[name] for name in names}, sequences, context.precision, add)
        for name in names:
            layer, adapter = layers[name], adapter_of(model)
            scale, task = layer.scaling[adapter], config.adapt == "task"
            covariance = covariances.pop(name) / len(sequences)
            starts[name] = corda_factors(dense_weight(layer), covariance, layer.r[adapter], scale, task)
    return _begin_all_(model, layers, starts)


def start_loraga_(model: Any, context: Context, config: LoragaConfig) -> Any:
    """Take singular vectors of its gradient out of each weight."""
    refuse_odd(model, "loraga")
    refuse_narrow(model, "loraga")
    room_for_two(model)
    sequences, layers = examples(context, config.items, "loraga"), dict(adapted_layers(model))
    starts: dict[str, Factors] = {}
    for names in grouped({name: 4 * layer.get_base_layer().weight.numel() for name, layer in layers.items()}):
        found = gradients(model, {name: layers[name] for name in names}, sequences, context.precision)
        for name in names:
            layer = layers[name]
            gradient = found.pop(name)
            gradient = gradient.T if layer.fan_in_fan_out else gradient
            rank = layer.r[adapter_of(model)]
            starts[name] = loraga_factors(gradient.float(), rank, config.direction, config.gamma)
    return _begin_all_(model, layers, starts)


def _begin_all_(model: Any, layers: dict[str, Any], starts: dict[str, Factors]) -> Any:
    """Begin only once all is measured: on a base that is still what it was."""
    for name, start in starts.items():
        begin_(model, layers[name], start)
    return remember_(model)
