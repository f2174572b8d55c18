"""The base that an adapter was trained on: noted beside it, and compared before it is put on one."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import Problem
from ..values import PlannedPlugin

BASE = "tunekit_base.json"
"""Beside an adapter: what the plugins of its run had made of the base, by their names."""
EXTENDED = "base.extended"
"""The capability of a plugin that makes a base on which an adapter of the one without it can be trained on."""


def base_of(plugins: Iterable[PlannedPlugin]) -> dict[str, Any]:
    """What the plugins of a whole run make of the base, as it is read back; those that leave it alone say nothing."""
    told = {planned.name: dict(planned.plugin.base) for planned in plugins if planned.stage is None}
    found: dict[str, Any] = json.loads(json.dumps({name: base for name, base in told.items() if base}))
    return found


def note_base(folder: Path, plugins: Iterable[PlannedPlugin]) -> None:
    """Write down which base the adapter in this folder was trained on."""
    (folder / BASE).write_text(json.dumps(base_of(plugins), indent=1, ensure_ascii=False), encoding="utf-8")


def other_base(
    folder: Path, plugins: Sequence[PlannedPlugin], where: str, added: Collection[str] = ()
) -> Problem | None:
    """Why the adapter in this folder does not belong on the base of these plugins; None where it does.

    Plugins that provide one of the capabilities `added` may have come since. Of an adapter without a note nothing is
    known.
    """
    try:
        noted = json.loads((folder / BASE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return Problem(where, f"{folder / BASE} cannot be read: {error}", "name the folder of a whole adapter")
    later = {planned.name for planned in plugins if planned.plugin.provides & set(added)} - noted.keys()
    now = {name: base for name, base in base_of(plugins).items() if name not in later}
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
