"""From the options of a recipe to a configuration of PEFT's, and everything in them that PEFT does not know."""

from __future__ import annotations

import dataclasses
import typing
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import peft
import pydantic

from tunekit.errors import PlanError, Problem, nearest
from tunekit_lora import LoraConfig
from tunekit_lora.targets import choose, own_modules, quantized_problems, shorten

from .methods import Request

OURS = {
    "peft_type": "say method",
    "target_modules": "say targets",
    "modules_to_save": "say modules_to_save beside options",
    "task_type": "leave it out",
    "inference_mode": "leave it out",
    "base_model_name_or_path": "leave it out",
    "revision": "leave it out",
    "auto_mapping": "leave it out",
    "peft_version": "leave it out",
    "fan_in_fan_out": "leave it out: PEFT finds out by the layer",
}
"""Fields of PEFT's configurations that follow from the recipe, and what to do instead."""

FEED_FORWARD = frozenset({"down_proj", "fc2", "fc_out", "wo", "w2", "dense_4h_to_h"})
"""What families call the last layer of the feed-forward part, of which IA3 scales the inputs and not the outputs."""


def make_settings(request: Request, model: Any) -> peft.PeftConfig:
    """PEFT's configuration for this model. PlanError naming every option that it does not know or cannot read."""
    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(request.method.upper())]
    found = list(option_problems(request, kind))
    arguments: dict[str, Any] = {**request.entry.defaults, **request.options}
    names = {field.name for field in dataclasses.fields(kind)}
    try:
        arguments |= _targets(request, model)
    except PlanError as error:
        found += error.problems
    if request.modules_to_save:
        arguments["modules_to_save"] = list(request.modules_to_save)
        found += _unsaved(request, model, names)
    if found:
        raise PlanError(found)
    if "feedforward_modules" in names and request.options.get("feedforward_modules") is None:
        # PEFT would take those of the family, whether they are targets or not, and not open again what it has saved.
        targets = arguments["target_modules"]
        arguments["feedforward_modules"] = [name for name in targets if name.rpartition(".")[2] in FEED_FORWARD]
    return _made(request, kind, arguments)


def _unsaved(request: Request, model: Any, names: Iterable[str]) -> Iterator[Problem]:
    """Modules that cannot be trained whole beside the adapter."""
    where = f"use.{request.plugin}.modules_to_save"
    if request.entry.kind == "prompt" or "modules_to_save" not in names:
        yield Problem(where, f"{request.method} trains nothing besides itself", "leave it out")
        return
    known = [name for name, _ in own_modules(model) if name]
    for target in request.modules_to_save:
        if not any(name == target or name.endswith(f".{target}") for name in known):
            close = nearest(target, {name.rpartition(".")[2] for name in known})
            remedy = f"did you mean {close!r}?" if close else "name a module of the model"
            yield Problem(where, f"the model has no module named {target!r}", remedy)
    yield from quantized_problems(model, request.modules_to_save, where)


def option_problems(request: Request, kind: type[Any]) -> Iterator[Problem]:
    """Options that the configuration class does not have, each with the nearest, and values of another type."""
    fields = {field.name for field in dataclasses.fields(kind) if field.init}
    hints = typing.get_type_hints(kind)
    for name, value in request.options.items():
        where = request.key(name)
        if name in OURS:
            yield Problem(where, f"{name} follows from the recipe", OURS[name])
        elif name in request.entry.idle:
            yield Problem(where, f"PEFT takes {name} and does nothing with it", "leave it out")
        elif name not in fields:
            known = sorted(fields - OURS.keys())
            close = nearest(name, known)
            remedy = f"did you mean {close!r}?" if close else f"it has {', '.join(known)}"
            yield Problem(where, f"{request.method} has no option {name!r}", remedy)
        elif (why := _not_of(hints[name], value)) is not None:
            yield Problem(where, f"{name} is {value!r}: {why}", "give a value of the type that PEFT asks for")


def _not_of(hint: Any, value: Any) -> str | None:
    """Why a value is not of a type, or None where it is."""
    try:
        pydantic.TypeAdapter(hint, config={"arbitrary_types_allowed": True}).validate_python(value)
    except pydantic.ValidationError as error:
        return "; ".join(dict.fromkeys(each["msg"] for each in error.errors()))
    return None


def _made(request: Request, kind: type[Any], arguments: dict[str, Any]) -> peft.PeftConfig:
    """The configuration; what its own checks say is a problem, a warning too: it is about an option that is ignored."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            settings: peft.PeftConfig = kind(task_type="CAUSAL_LM", **arguments)
    except (ValueError, TypeError, ImportError, UserWarning) as error:
        where, what = f"use.{request.plugin}.options", " ".join(str(error).split())
        raise PlanError([Problem(where, f"{request.method} refuses them: {what}", "change them")]) from error
    return settings


def _targets(request: Request, model: Any) -> dict[str, Any]:
    """`target_modules`, where the method has them."""
    kind, targets = request.entry.kind, request.targets
    where = f"use.{request.plugin}.targets"
    if kind in ("prompt", "own"):
        if targets is not None:
            what = f"{request.method} learns a prompt" if kind == "prompt" else f"{request.method} finds its own places"
            raise PlanError([Problem(where, f"{what}, and has no target layers", "leave it out")])
        return {}
    if kind == "norms" and targets in (None, "all-linear"):
        return {"target_modules": _norms(model)}
    if kind == "norms":
        return {"target_modules": list(_known(targets, model, where))}
    try:
        chosen = choose(model, LoraConfig.model_validate({"targets": targets or "all-linear", "rank": 1})).layers
    except PlanError as error:
        own = f"use.{request.plugin}"
        raise PlanError(replace(each, where=each.where.replace("use.lora", own)) for each in error.problems) from error
    return {"target_modules": shorten(model, chosen)}


def _norms(model: Any) -> list[str]:
    """The full names of all modules that hold vectors and nothing else."""
    return [name for name, module in own_modules(model) if name and _is_norm(module)]


def _is_norm(module: Any) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and all(each.ndim == 1 for each in parameters) and not list(module.children())


def _known(targets: Any, model: Any, where: str) -> Iterable[str]:
    names = [targets] if isinstance(targets, str) else list(targets)
    known = _norms(model)
    for target in names:
        if not any(name == target or name.endswith(f".{target}") for name in known):
            close = nearest(target, {name.rpartition(".")[2] for name in known})
            remedy = f"did you mean {close!r}?" if close else f"it has {', '.join(known[:6])}"
            raise PlanError([Problem(where, f"the model has no norm named {target!r}", remedy)])
    return names
