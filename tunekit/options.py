"""Types of options that several plugins share."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator


def _readable(targets: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if not targets:
        raise ValueError("names no layer; write all-linear, a list of names or a regular expression")
    if isinstance(targets, str):
        try:
            re.compile(targets)
        except re.error as error:
            raise ValueError(f"{targets!r} is no regular expression ({error}); write [{targets}] for a name") from None
    return targets


Targets = Annotated[str | tuple[str, ...], AfterValidator(_readable)]
"""Which layers of a model: `all-linear`, a list of names, or a regular expression over whole names."""
