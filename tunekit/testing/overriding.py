"""A test of a suite may be replaced only by one that says why it is expected to fail."""

from __future__ import annotations

from typing import Any

_KIT = __name__.rpartition(".")[0]


def refuse_silent_overrides(suite: type) -> None:
    """Raise TypeError where a class outside the kit replaces a suite's test without `xfail(reason=...)`."""
    if suite.__module__.startswith(f"{_KIT}."):
        return
    for name, replacement in vars(suite).items():
        base = next((base for base in suite.__mro__[1:] if name in vars(base)), None)
        if base is None or not name.startswith("test_") or not base.__module__.startswith(f"{_KIT}."):
            continue
        if not _reason(replacement):
            raise TypeError(
                f"{suite.__name__}.{name} replaces a test of {base.__name__}; "
                'mark it @pytest.mark.xfail(reason="..."), or give it another name'
            )


def _reason(function: Any) -> str:
    marks = getattr(function, "pytestmark", [])
    return next((str(mark.kwargs.get("reason") or "") for mark in marks if mark.name == "xfail"), "")
