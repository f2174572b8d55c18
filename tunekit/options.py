"""Types of options that several plugins share, and the options of all export targets."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from .plugin import PluginConfig


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


class ExportConfig(PluginConfig):
    """What every export target can be asked: where it goes, and how it is compared with what was trained."""

    folder: Path | None = Field(
        default=None, description="where it goes, a new folder; none: exports/NAME in the run folder"
    )
    rows: int = Field(
        default=16,
        ge=1,
        le=1024,
        description="rows on which it is compared with what was trained: held-out ones, else rows trained on",
    )
    row_tokens: int = Field(default=512, ge=2, description="tokens of each row that are compared, at most")
    tolerance: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="KL divergence between trained model and export that is accepted, as a share of that between "
        "trained model and base",
    )


class DenseExportConfig(ExportConfig):
    """What every target that holds merged weights can be asked."""

    base: Literal["stored", "original"] = Field(
        default="stored",
        description="what the adapter is merged into where the base was quantised: stored, the weights it was trained "
        "on, made dense; original, those before they were quantised",
    )
