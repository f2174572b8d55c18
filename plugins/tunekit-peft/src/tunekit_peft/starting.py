"""Beginning with a saved adapter: whether it is what the recipe asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tunekit.errors import PlanError, Problem
from tunekit.values import Start
from tunekit_lora.saved import read_configuration
from tunekit_lora.starting import targeted
from tunekit_lora.targets import own_modules

from .methods import Request

TARGETS = "target_modules"


def refuse_other(request: Request, settings: Any, start: Start, model: Any) -> None:
    """Raise PlanError where the saved adapter was made otherwise than `settings` say.

    Only what the recipe itself gives counts: the rest is as it was saved.
    """
    saved = read_configuration(start.folder)
    found = list(_differences(request, json.loads(json.dumps(settings.to_dict(), default=list)), saved, model))
    if found:
        remedy = "leave it out to take what is saved, or start fresh"
        raise PlanError(Problem(start.key, f"{start.folder} {why}", remedy) for why in found)


def _differences(request: Request, asked: dict[str, Any], saved: dict[str, Any], model: Any) -> Iterator[str]:
    for name, key in request.given.items():
        wanted, found = asked.get(name), saved.get(name)
        if name == TARGETS and wanted is not None:
            names = [name for name, _ in own_modules(model)]
            there, here = ({each for each in names if targeted(each, targets)} for targets in (found or (), wanted))
            if other := sorted(there ^ here):
                where = "there and not here" if other[0] in there else "here and not there"
                yield f"is for other layers than {key}: {other[0]} is adapted {where}"
        elif _plain(wanted) != _plain(found):
            yield f"was trained with {name} {found!r}, and {key} makes it {wanted!r}"


def _plain(value: Any) -> Any:
    """Names that PEFT keeps as a set, in one order."""
    named = isinstance(value, list) and all(isinstance(each, str) for each in value)
    return sorted(value) if named else value
