"""The base that an adapter was trained on: noted beside it, and compared before it is put on one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import Problem
from ..values import PlannedPlugin

BASE = "tunekit_base.json"
"""Beside an adapter: what the plugins of its run had made of the base, by their names."""


def base_of(plugins: Iterable[PlannedPlugin]) -> dict[str, Any]:
    """What the plugins of a whole run make of the base, as it is read back; those that leave it alone say nothing."""
    told = {planned.name: dict(planned.plugin.base) for planned in plugins if planned.stage is None}
    found: dict[str, Any] = json.loads(json.dumps({name: base for name, base in told.items() if base}))
    return found


def note_base(folder: Path, plugins: Iterable[PlannedPlugin]) -> None:
    """Write down which base the adapter in this folder was trained on."""
    (folder / BASE).write_text(json.dumps(base_of(plugins), indent=1, ensure_ascii=False), encoding="utf-8")


def other_base(folder: Path, plugins: Iterable[PlannedPlugin], where: str) -> Problem | None:
    """Why the adapter in this folder does not belong on the base of these plugins; None where it does.

    Of an adapter without a note nothing is known.
    """
    try:
        noted = json.loads((folder / BASE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return Problem(where, f"{folder / BASE} cannot be read: {error}", "name the folder of a whole adapter")
    now = base_of(plugins)
    name = next((name for name in (*noted, *now) if noted.get(name) != now.get(name)), None)
    if name is None:
        return None
    if name not in noted:
        remedy = f"leave {name} out, or name one that was trained with it"
        return Problem(where, f"{folder} was trained on the base without {name}", remedy)
    before = _shown(noted[name])
    what = f"{folder} was trained on a base that {name} had changed ({before})"
    if name not in now:
        return Problem(where, f"{what}, and it is not in use", f"add use.{name} as it was")
    return Problem(where, f"{what}, and use.{name} says {_shown(now[name])}", "say what it was trained with")


def _shown(base: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in base.items())
