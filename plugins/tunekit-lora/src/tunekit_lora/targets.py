"""Which layers of a model get a low-rank update."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunekit.errors import PlanError, Problem, nearest

from . import LoraConfig
from .parameters import choose_parameters, token_ids
from .patterns import pattern_problems, rank_of

_SIZES = (("out_features", "in_features"), ("nf", "nx"))
_TABLE = ("num_embeddings", "embedding_dim")
FROZEN = "tunekit_frozen"
"""What a patch gives to modules that stay as they are whatever an adapter's targets say, such as a vision tower's."""
QUANTIZED = "tunekit_quantized"
"""What a quantiser's estimate gives to the layers of a skeleton that will hold no weights that train."""


@dataclass(frozen=True)
class Chosen:
    """What trains: full names of layers and parameters in the order of the model, and the numbers of tokens."""

    layers: list[str]
    parameters: list[str]
    tokens: list[int]


def choose(model: Any, config: LoraConfig, tokenizer: Any = None) -> Chosen:
    """Find what the options mean in this model.

    Works on the meta device. PlanError naming all that does not fit: names that the model does not have, each with the
    nearest ones, patterns that fit nothing, and ranks above the smaller side of a layer.
    """
    linear = linear_layers(model)
    known = {**linear, **{name: size for name, module in own_modules(model) if (size := _size(module, _TABLE))}}
    problems: list[Problem] = []
    layers = _named(model, config, linear, known, problems)
    if config.layers:
        layers = _inside(model, config.layers, layers, problems)
    parameters = choose_parameters(model, config.parameters, known, problems)
    tokens = token_ids(tokenizer, config.tokens, problems)
    if not (layers or parameters or tokens or problems):
        problems.append(_nothing_matches(config.targets, linear))
    problems += _unmatched("modules_to_save", config.modules_to_save, [name for name, _ in own_modules(model)])
    problems += quantized_problems(model, config.modules_to_save, "use.lora.modules_to_save")
    problems += [_tied(name) for name in layers if name in tied_embeddings(model)]
    problems += _trained_twice(model, config)
    sizes = {**{name: known[name] for name in layers}, **parameters}
    problems += pattern_problems(config, sizes) if not problems else []
    problems += _too_narrow(config, sizes)
    if problems:
        raise PlanError(problems)
    return Chosen(layers, list(parameters), tokens)


def choose_targets(model: Any, config: LoraConfig) -> list[str]:
    """Find the full names of the layers that `config` means, in the order of the model. PlanError as in `choose`."""
    return choose(model, config).layers


def _named(
    model: Any,
    config: LoraConfig,
    linear: Mapping[str, tuple[int, int]],
    known: Mapping[str, tuple[int, int]],
    problems: list[Problem],
) -> list[str]:
    """The layers that `targets` names."""
    if config.targets == "none":
        return []
    if config.targets == "all-linear":
        # A gate of one number has no update of a lower rank than itself.
        return sorted((name for name in _body(model, linear) if min(linear[name]) > 1), key=list(linear).index)
    if isinstance(config.targets, str):
        return [name for name in linear if re.fullmatch(config.targets, name)]
    problems += _unmatched("targets", config.targets, known)
    return [name for name in known if any(is_named(name, target) for target in config.targets)]


def _inside(model: Any, numbers: Iterable[int], names: list[str], problems: list[Problem]) -> list[str]:
    """Those of the targets that are in these layers of the model, or in none."""
    count = model.config.get_text_config().num_hidden_layers
    stacks = [f"{name}." for name, module in own_modules(model) if _is_stack(module, count)]
    if not stacks:
        what = f"{type(model).__name__} has no stack of {count} layers to choose from"
        problems.append(Problem("use.lora.layers", what, "name the layers in targets"))
        return names
    outside = [number for number in numbers if not -count <= number < count]
    for number in outside:
        what = f"there is no layer {number}: the model has {count}, from 0 to {count - 1}"
        problems.append(Problem("use.lora.layers", what, "leave it out"))
    wanted = {number % count for number in numbers}

    def kept(name: str) -> bool:
        within = next((stack for stack in stacks if name.startswith(stack)), None)
        return within is None or int(name.removeprefix(within).partition(".")[0]) in wanted

    return [name for name in names if kept(name)]


def _is_stack(module: Any, count: int) -> bool:
    """Whether this is the list of the model's layers."""
    import torch

    return isinstance(module, torch.nn.ModuleList) and len(module) == count


def linear_layers(model: Any) -> dict[str, tuple[int, int]]:
    """Name every linear layer with its size (out, in), whatever its weights are stored as.

    By attributes rather than by class: quantised layers of most libraries are no subclass of `torch.nn.Linear`. A layer
    that a patch has marked as frozen is none to choose.
    """
    layers = [(name, module) for name, module in own_modules(model) if not getattr(module, FROZEN, False)]
    found = ((name, _size(module, pair)) for name, module in layers for pair in _SIZES)
    return {name: size for name, size in found if size and name}


def own_modules(model: Any) -> Iterator[tuple[str, Any]]:
    """The model's modules with their names, as if it carried no adapter: nothing that PEFT keeps inside of one."""
    wrapped: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if not name.startswith(wrapped):
            yield name, module
            if "base_layer" in module._modules or "original_module" in module._modules:
                wrapped = (*wrapped, f"{name}.")


def tied_embeddings(model: Any) -> set[str]:
    """Name embedding and head where they are one matrix; nothing where they are two."""
    if not getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        return set()
    both = (model.get_input_embeddings(), model.get_output_embeddings())
    return {name for name, module in own_modules(model) if any(module is one for one in both)}


def shorten(model: Any, chosen: Iterable[str]) -> list[str]:
    """Write the chosen names as last parts (`q_proj`) where those mean exactly the same layers, else in full."""
    names = set(chosen)
    last = {name.rpartition(".")[2] for name in names}
    meant = {name for name, _ in own_modules(model) if name.rpartition(".")[2] in last}
    return sorted(last if meant == names else names)


def _size(module: Any, attributes: tuple[str, str]) -> tuple[int, int] | None:
    values = [getattr(module, attribute, None) for attribute in attributes]
    return (values[0], values[1]) if all(isinstance(value, int) for value in values) else None  # type: ignore[return-value]


def _body(model: Any, linear: Iterable[str]) -> set[str]:
    """The linear layers inside the transformer body, so that heads of every kind are left out."""
    prefix = getattr(model, "base_model_prefix", "")
    if prefix and hasattr(model, prefix):
        return {name for name in linear if name.startswith(f"{prefix}.")}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return {name for name in linear if model.get_submodule(name) is not head}


def quantized_problems(model: Any, wanted: Iterable[str], key: str) -> Iterator[Problem]:
    """Modules that are to train whole, and whose weights a plan says are quantised: these train with adapters only."""
    for target in wanted:
        named = [module for name, module in own_modules(model) if is_named(name, target)]
        if any(getattr(inner, QUANTIZED, False) for module in named for inner in module.modules()):
            remedy = "leave it out, or have the quantiser skip it where it has that option"
            yield Problem(key, f"{target} is quantised, and quantised weights cannot train whole", remedy)


def is_named(name: str, target: str) -> bool:
    """Whether `target` is this full name or its last parts."""
    return name == target or name.endswith(f".{target}")


def _unmatched(option: str, wanted: Iterable[str], known: Iterable[str]) -> list[Problem]:
    names = list(known)
    return [
        Problem(f"use.lora.{option}", f"the model has no layer named {target!r}", _suggest(target, names))
        for target in wanted
        if not any(is_named(name, target) for name in names)
    ]


def _tied(name: str) -> Problem:
    message = f"{name} is one matrix with the other end of the model, and a low-rank update of it cannot be merged"
    return Problem("use.lora.targets", message, "leave it out, or name it in modules_to_save to train all of it")


def _nothing_matches(targets: str | tuple[str, ...], linear: Iterable[str]) -> Problem:
    if targets == "all-linear":
        return Problem("use.lora.targets", "the model has no linear layer besides its head", "name the layers to adapt")
    assert isinstance(targets, str), "a name that matches nothing is reported by itself"
    last = sorted({name.rpartition(".")[2] for name in linear})
    remedy = f"write [{targets}] to name layers" if targets in last else _suggest(targets, linear)
    message = f"no linear layer's whole name matches the regular expression {targets!r}"
    return Problem("use.lora.targets", message, remedy)


def _suggest(target: str, names: Iterable[str]) -> str:
    full = list(names)
    last = sorted({name.rpartition(".")[2] for name in full if name})
    close = nearest(target, last) or nearest(target, full)
    return f"did you mean {close!r}?" if close else f"it has {', '.join(last)}"


def _trained_twice(model: Any, config: LoraConfig) -> list[Problem]:
    """Rows of an embedding that would train by themselves and with all others."""
    if not config.tokens:
        return []
    embedding = model.get_input_embeddings()
    whole = [name for name, module in own_modules(model) if module is embedding]
    ends = {*whole, *tied_embeddings(model)}
    saved = [name for name in config.modules_to_save if any(is_named(end, name) for end in ends)]
    what = "trains the whole embedding, of which use.lora.tokens trains single rows"
    return [Problem("use.lora.modules_to_save", f"{name} {what}", "leave one of the two out") for name in saved]


def _too_narrow(config: LoraConfig, sizes: dict[str, tuple[int, int]]) -> list[Problem]:
    """The layer whose rank exceeds its smaller side by the most."""
    narrow = {name: size for name, size in sizes.items() if min(size) < rank_of(config, name)}
    if not narrow:
        return []
    name, (rows, columns) = min(narrow.items(), key=lambda item: min(item[1]))
    fits, rank = min(rows, columns), rank_of(config, name)
    option = "rank" if rank == config.rank else "rank_pattern"
    return [Problem("", f"use.lora.{option} is {rank}, but {name} is {rows} x {columns}", f"choose {fits} or less")]
