"""Whether an export says what was trained."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..errors import ExportError
from ..values import Verification
from .export import DETAILS

NOTHING = 1e-9
"""A KL divergence, in nats a token, that rounding alone explains."""


def judge(name: str, found: Verification, tolerance: float) -> None:
    """Raise ExportError, with the numbers, where the export is not what was trained.

    KL(trained || export) is to stay under `tolerance` times KL(trained || base): what is as far from the trained model
    as the base is has lost what was learnt, and a difference in the data types is far smaller.
    """
    told = f"KL {found.kl:.3g} nats a token from the trained model, which is {found.base_kl:.3g} from the base"
    where = f"{found.tokens} tokens of {found.rows} rows, read by {found.reader}"
    if not math.isfinite(found.kl):
        raise ExportError(f"{name} says no finite numbers on {where}", "choose a wider dtype")
    if found.base_kl <= NOTHING:
        message = f"{name} cannot be told from the base: the trained model says what the base says on {where}"
        raise ExportError(message, "train more, or export a run that has learnt something")
    if found.kl < tolerance * found.base_kl:
        return
    if math.isclose(found.kl, found.base_kl, rel_tol=0.02):
        raise ExportError(f"{name} is as far from the trained model as the base is: {told}, on {where}",
                          "what was trained is not in it; this is a mistake of the export")  # fmt: skip
    raise ExportError(
        f"{name} is {found.kl / found.base_kl:.2g} times as far from the trained model as the base is, and "
        f"{tolerance:g} times are accepted: {told}, on {where}",
        "choose a wider dtype or more bits, or accept more with `tolerance`",
    )


def judge_earlier(name: str, folder: Path) -> Verification:
    """How an earlier export was compared when it was made. ExportError where it is further off than it said it accepts.

    What is passed on is judged again, by its own numbers: files may have come from elsewhere since, or been edited.
    """
    details = json.loads((folder / DETAILS).read_text(encoding="utf-8"))
    told: dict[str, Any] = details["verification"]
    told |= {number: float(told[number]) for number in _NUMBERS}
    found = Verification(**told)
    judge(name, found, float(details["options"]["tolerance"]))
    return found


_NUMBERS = ("kl", "base_kl", "top1", "perplexity", "trained_perplexity", "base_perplexity")
"""Of a comparison; one that is not finite stands in JSON by its name."""
