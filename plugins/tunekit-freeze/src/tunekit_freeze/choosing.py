"""Which parameters train, from the names in the options."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from tunekit.errors import PlanError, Problem, TunekitError, nearest

from . import FreezeConfig, FullConfig
from .blocks import Blocks, expand_, find_blocks


def choose_weights(model: Any, config: FreezeConfig, probe: bool = False) -> list[str]:
    """Find the full names of the parameters that train, in the order of the model, which is expanded where asked.

    Works on the meta device; `probe` needs a real model (`expand_`). PlanError naming all that does not fit.
    """
    problems: list[Problem] = []
    chosen: set[int] = set()
    if config.expand or config.layers:
        places = expand_(model, config.expand, probe) if config.expand else None
        blocks = find_blocks(model)
        places = _places(blocks, config.layers, problems) if places is None else places
        chosen |= _inside(blocks, places, config, problems)
    chosen |= _outside(model, config, problems)
    return _names(model, chosen, problems)


def choose_of_all(model: Any, config: FullConfig) -> list[str]:
    """Find the full names of the parameters that train, in the order of the model. PlanError where a name is not there.

    Works on the meta device.
    """
    modules, problems = dict(model.named_modules()), list[Problem]()
    matched = _matching(config.train, modules, "use.full.train", problems)
    chosen = {id(parameter) for name in matched for parameter in modules[name].parameters()}
    if config.freeze_embeddings:
        chosen -= {id(parameter) for parameter in model.get_input_embeddings().parameters()}
        if not chosen and not problems:
            what = "freezes all that use.full.train names"
            problems.append(Problem("use.full.freeze_embeddings", what, "leave one of the two out"))
    return _names(model, chosen, problems)


def _places(blocks: Blocks, layers: int, problems: list[Problem]) -> list[int]:
    count = len(blocks)
    if abs(layers) > count:
        limit = f"{count} or less" if layers > 0 else f"-{count} or more"
        problems.append(Problem("", f"use.freeze.layers is {layers}, but the model has {count}", f"choose {limit}"))
    return list(range(count))[-layers:] if layers > 0 else list(range(count))[:-layers]


def _inside(blocks: Blocks, places: list[int], config: FreezeConfig, problems: list[Problem]) -> set[int]:
    """The parameters of the named modules in the layers at these places; layers may differ in what they hold."""
    layers = [blocks.layers[place] for place in places]
    known = {name: None for layer in layers for name, _ in layer.named_modules()}
    matched = _matching(config.modules, known, "use.freeze.modules", problems)
    return {
        id(parameter)
        for layer in layers
        for name, module in layer.named_modules()
        if name in matched
        for parameter in module.parameters()
    }


def _matching(wanted: str | tuple[str, ...], known: Iterable[str], where: str, problems: list[Problem]) -> set[str]:
    """The names of modules that are meant; those inside a module follow it."""
    names = list(known)
    if wanted == "all":
        return {""}
    if isinstance(wanted, str):
        found = {name for name in names if re.fullmatch(wanted, name)}
        if not found:
            what = f"no module's whole name matches the regular expression {wanted!r}"
            problems.append(Problem(where, what, _suggest(wanted, names)))
        return found
    for target in wanted:
        if not any(_is_named(name, target) for name in names):
            problems.append(Problem(where, f"there is no module named {target!r}", _suggest(target, names)))
    return {name for name in names if any(_is_named(name, target) for target in wanted)}


def _outside(model: Any, config: FreezeConfig, problems: list[Problem]) -> set[int]:
    """The parameters of the modules in `extra`."""
    inside = _stack_name(model)
    outside = {
        name: module
        for name, module in model.named_modules()
        if name and not _overlaps(name, inside) and any(True for _ in module.parameters())
    }
    problems += _unknown(model, config.extra, list(outside))
    problems += _torn(model, [name for name in outside if any(_is_named(name, each) for each in config.extra)])
    return {
        id(parameter)
        for name, module in outside.items()
        if any(_is_named(name, each) for each in config.extra)
        for parameter in module.parameters()
    }


def _stack_name(model: Any) -> str | None:
    try:
        return find_blocks(model).name
    except TunekitError:
        return None  # no layers: everything is outside of them


def _overlaps(name: str, stack: str | None) -> bool:
    """Whether a module is in the stack of layers, or holds it."""
    return stack is not None and (f"{name}.".startswith(f"{stack}.") or f"{stack}.".startswith(f"{name}."))


def _unknown(model: Any, extra: Iterable[str], outside: list[str]) -> Iterator[Problem]:
    for target in extra:
        if any(_is_named(name, target) for name in outside):
            continue
        if any(_is_named(name, target) for name, _ in model.named_modules()):
            what = f"{target!r} has no weights outside the layers"
            yield Problem("use.freeze.extra", what, f"it has {', '.join(outside)}; name parts of layers in modules")
        else:
            what = f"the model has no module named {target!r}"
            yield Problem("use.freeze.extra", what, _suggest(target, outside))


def _torn(model: Any, chosen: list[str]) -> Iterator[Problem]:
    """Naming one end of a tied pair trains the other one too: that has to be said."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if ends[0] is None or ends[1] is None or ends[0].weight is not ends[1].weight:
        return
    named = [name for end in ends for name, module in model.named_modules() if module is end]
    missing = [name for name in named if name not in chosen]
    if len(missing) == 1:
        (one,) = (name for name in named if name in chosen)
        what = f"{one} is one matrix with {missing[0]}, and both would train"
        yield Problem("use.freeze.extra", what, f"name {missing[0]} too, or leave {one} out")


def _names(model: Any, chosen: set[int], problems: list[Problem]) -> list[str]:
    if problems:
        raise PlanError(problems)
    return [name for name, parameter in model.named_parameters() if id(parameter) in chosen]


def _is_named(name: str, target: str) -> bool:
    """Whether `target` is this full name or its last parts."""
    return name == target or name.endswith(f".{target}")


def _suggest(target: str, names: Iterable[str]) -> str:
    full = [name for name in names if name]
    last = sorted({name.rpartition(".")[2] for name in full if not name.rpartition(".")[2].isdigit()})
    if target in last:
        return f"write [{target}] to name modules"
    close = nearest(target, last) or nearest(target, full)
    return f"did you mean {close!r}?" if close else f"it has {', '.join(last)}"
