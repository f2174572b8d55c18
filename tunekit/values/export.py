"""A finished run on its way to files that others read, and the comparison of these with what was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .model import ModelBundle
from .tokens import Prepared, TokenSequence


@dataclass(frozen=True)
class ExportRequest:
    """What an export is made of, and where it goes.

    `folder` is empty and is given its name once the export is seen to be right. `adapter` is the folder of the trained
    adapter, None where weights of the base were trained. `rows` are compared; `held_out` says whether the run kept them
    from training. `earlier` are the exports that the run has made before, by their names.
    `base` loads the model as it was before training, `dense` the trained one: in ordinary float32 layers without an
    adapter, from the base as the run stores it, or with True from the original in full precision. Both load anew.
    `data` prepares what the first stage has learnt from, for who rounds weights by data; None where there was no stage.
    """

    folder: Path
    model: str
    rows: tuple[TokenSequence, ...]
    held_out: bool
    base: Callable[[], ModelBundle]
    dense: Callable[[bool], ModelBundle]
    adapter: Path | None = None
    earlier: Mapping[str, Path] = field(default_factory=dict)
    data: Callable[[], Prepared] | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """How an export, read again by `reader`, compares with what was trained.

    Over `tokens` predicted tokens of `rows` rows, `held_out` from training or not: `kl` is KL(trained || export) and
    `base_kl` KL(trained || base), in nats a token; `top1` is the share of tokens at which export and trained model have
    the same likeliest one; the perplexities are of the tokens that were trained to be said.
    """

    reader: str
    rows: int
    tokens: int
    held_out: bool
    kl: float
    base_kl: float
    top1: float
    perplexity: float
    trained_perplexity: float
    base_perplexity: float


@dataclass(frozen=True)
class Exported:
    """What a plugin has written: how it compares, facts for `export.json`, and how it is used, in Markdown.

    `of` is the earlier export of the run that was passed on as it is: it is judged by what it accepted itself.
    """

    verification: Verification
    facts: Mapping[str, Any] = field(default_factory=dict)
    usage: str = ""
    of: str | None = None
