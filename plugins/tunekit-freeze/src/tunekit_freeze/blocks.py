"""The layers of a transformer: where they are, and how copies are inserted that change nothing at first."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tunekit.errors import PlanError, Problem, TunekitError

OUTPUTS = frozenset(
    {"o_proj", "down_proj", "c_proj", "out_proj", "fc2", "dense", "dense_4h_to_h", "wo", "w2", "linear_out"}
)
"""What the families call the last linear layer of attention and of the feed-forward part."""


@dataclass(frozen=True)
class Blocks:
    """The stack of layers: its name in the model, and the layers in their order."""

    name: str
    layers: nn.ModuleList

    def __len__(self) -> int:
        return len(self.layers)


def find_blocks(model: Any) -> Blocks:
    """Find the stack with as many layers as the config says. Raises TunekitError where there is none."""
    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return Blocks(name, module)
    raise TunekitError(
        f"{type(model).__name__} has no stack of {count} layers to choose from",
        "set use.freeze.layers to 0 and name the modules in extra, or use full with a pattern",
    )


def expand_(model: Any, copies: int, probe: bool) -> list[int]:
    """Insert a copy of the last layer of each of `copies` equal groups behind it; returns the places of the copies.

    The last products of a copy are zero, so it adds nothing to what passes (LLaMA Pro: Progressive LLaMA with Block
    Expansion, arXiv 2401.02415, section 3.2, with one copy for each group). `probe`: run a few tokens before and after
    to see that this holds.

    Raises:
        PlanError: the layers cannot be cut into so many equal groups.
        TunekitError: the copies change what the model says, since it is built in another way.
    """
    blocks = find_blocks(model)
    if len(blocks) % copies:
        fits = ", ".join(str(number) for number in range(1, len(blocks) + 1) if len(blocks) % number == 0)
        what = f"is {copies}, but {len(blocks)} layers cannot be cut into so many equal groups"
        raise PlanError([Problem("use.freeze.expand", what, f"choose one of {fits}")])
    before = _probe(model) if probe else None
    group, layers, places = len(blocks) // copies, list[nn.Module](), list[int]()
    for index, layer in enumerate(blocks.layers):
        layers.append(layer)
        if (index + 1) % group == 0:
            places.append(len(layers))
            layers.append(_silent_copy(layer))
    _install_(model, blocks, layers, places)
    if before is not None and not torch.equal(before, _probe(model)):
        raise TunekitError(
            f"copies of the layers of {type(model).__name__} change what it says, so it cannot be expanded",
            "leave use.freeze.expand out and train layers it has",
        )
    return places


def _silent_copy(layer: nn.Module) -> nn.Module:
    twin = copy.deepcopy(layer)
    for name, parameter in twin.named_parameters():
        if OUTPUTS & set(name.split(".")):
            nn.init.zeros_(parameter)
    return twin


def _install_(model: Any, blocks: Blocks, layers: list[nn.Module], places: list[int]) -> None:
    """Put the longer stack in place, its layers numbered anew."""
    parent, _, own = blocks.name.rpartition(".")
    setattr(model.get_submodule(parent), own, nn.ModuleList(layers))
    for index, layer in enumerate(layers):
        part: Any
        for part in layer.modules():
            if isinstance(getattr(part, "layer_idx", None), int):
                part.layer_idx = index  # where it keeps its keys and values
    _count_layers_(model.config.get_text_config(), blocks, len(layers), places)


def _count_layers_(config: Any, blocks: Blocks, count: int, places: list[int]) -> None:
    """Tell the config of the longer stack, in the lists with an entry for each layer too."""
    per_layer: dict[str, list[Any]] = {}
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == len(blocks.layers):  # what kind each layer is, for one
            grown = list(value)
            for place in places:
                grown.insert(place, grown[place - 1])
            per_layer[name] = grown
    config.num_hidden_layers = count
    for name, grown in per_layer.items():
        setattr(config, name, grown)


def _probe(model: Any) -> Any:
    """What the model says of a few tokens: [1 batch, 8 seq, vocab]."""
    device = model.get_input_embeddings().weight.device
    with torch.no_grad():
        return model(input_ids=torch.arange(8, device=device)[None], use_cache=False).logits
