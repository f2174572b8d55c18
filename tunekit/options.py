"""Types of options that several plugins share."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated

from pydantic import AfterValidator


def _readable(names: str | tuple[str, ...], everything: str, noun: str) -> str | tuple[str, ...]:
    if not names:
        raise ValueError(f"names no {noun}; write {everything}, a list of names or a regular expression")
    if isinstance(names, str):
        try:
            re.compile(names)
        except re.error as error:
            raise ValueError(f"{names!r} is no regular expression ({error}); write [{names}] for a name") from None
    return names


Targets = Annotated[str | tuple[str, ...], AfterValidator(partial(_readable, everything="all-linear", noun="layer"))]
"""Which layers of a model: `all-linear`, a list of names, or a regular expression over whole names."""
Modules = Annotated[str | tuple[str, ...], AfterValidator(partial(_readable, everything="all", noun="module"))]
"""Which modules of a model: `all`, a list of names, or a regular expression over whole names."""
