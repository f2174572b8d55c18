"""What the data of a stage does in a model: the inputs of its layers, and the gradients of their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from tunekit.errors import TunekitError
from tunekit.values import Context, Precision, TokenSequence

GROUP_BYTES = 1 << 30
"""How much the matrices of layers measured in one pass over the data may take; more layers take more passes."""

Watch = Callable[[str, Tensor], None]


def examples(context: Context, items: int, plugin: str) -> list[TokenSequence]:
    """The sequences of the first items of what a fresh adapter will learn. TunekitError where there are none."""
    if context.data is None:
        remedy = "attach it in a run that trains, or take the plugin out"
        raise TunekitError(f"{plugin} begins by looking at the data of the stage, and there is no stage here", remedy)
    return [sequence for item in islice(context.data(), items) for sequence in item.sequences if len(sequence) > 1]


def grouped(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Names in groups whose sizes in bytes stay under the limit; a larger one is alone."""
    group: list[str] = []
    taken = 0
    for name, size in sizes.items():
        if group and taken + size > GROUP_BYTES:
            yield group
            group, taken = [], 0
        group.append(name)
        taken += size
    if group:
        yield group


def run(model: Any, sequence: TokenSequence, precision: Precision) -> Tensor:
    """The logits of one sequence by itself, [seq vocab]."""
    device = next(model.parameters()).device
    ids = torch.as_tensor(list(sequence.ids), dtype=torch.long, device=device)[None]
    with torch.autocast(device.type, getattr(torch, precision.compute), enabled=precision.autocast):
        logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits


def watch_inputs(
    model: Any, layers: Mapping[str, Any], sequences: Iterable[TokenSequence], precision: Precision, watch: Watch
) -> None:
    """Run each sequence and show what each layer is given of its supervised tokens, fp32 [tokens in].

    Of a sequence without supervised tokens all are shown.
    """
    rows: list[Tensor] = []

    def hook(name: str) -> Callable[..., None]:
        return lambda module, given: watch(name, given[0].detach()[0][rows[-1]].float())

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        with evaluating(model), torch.no_grad():
            for sequence in sequences:
                weights = torch.as_tensor(list(sequence.weights), dtype=torch.float32)
                shown = weights.nonzero()[:, 0] if bool(weights.any()) else torch.arange(len(weights))
                rows.append(shown.to(next(model.parameters()).device))
                run(model, sequence, precision)
    finally:
        for handle in handles:
            handle.remove()


def gradients(
    model: Any, layers: Mapping[str, Any], sequences: Iterable[TokenSequence], precision: Precision
) -> dict[str, Tensor]:
    """The gradient of the mean loss of supervised tokens by the weight under each adapter, fp32 as it is stored.

    Raises TunekitError where no token is supervised.
    """
    weights = {name: layer.get_base_layer().weight for name, layer in layers.items()}
    total = 0.0
    with evaluating(model), _training_only(model, weights.values()), torch.enable_grad():
        for sequence in sequences:
            loss, weight = _loss(run(model, sequence, precision), sequence)
            if weight:
                loss.backward()  # type: ignore[no-untyped-call]
                total += weight
        found = {name: weight.grad / total for name, weight in weights.items() if weight.grad is not None and total}
        for weight in weights.values():
            weight.grad = None
    if len(found) < len(layers):
        remedy = "give it data with answers, or raise items"
        raise TunekitError("loraga takes the gradient of the loss, and the examples have no token to learn", remedy)
    return found


def _loss(logits: Tensor, sequence: TokenSequence) -> tuple[Tensor, float]:
    """The weighted sum of -log p(token) over a sequence, and the sum of the weights; the first token is no target."""
    targets = torch.as_tensor(list(sequence.ids)[1:], dtype=torch.long, device=logits.device)
    weights = torch.as_tensor(list(sequence.weights)[1:], dtype=torch.float32, device=logits.device)
    losses = torch.nn.functional.cross_entropy(logits[:-1].float(), targets, reduction="none")
    return (losses * weights).sum(), float(weights.sum())


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without dropout and noise; each module's mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _training_only(model: Any, weights: Iterable[Any]) -> Iterator[None]:
    """Let these weights take gradients and no other."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, trains in before:
            parameter.requires_grad_(trains)
