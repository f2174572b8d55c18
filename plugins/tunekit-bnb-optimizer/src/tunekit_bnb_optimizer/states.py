"""The optimiser of bitsandbytes, and what its states take."""

from __future__ import annotations

import math
from typing import Any

from tunekit.values import Estimate, OptimizerSettings
from tunekit_train.adamw import decay_groups
from tunekit_train.estimate import states_estimate

from . import BnbOptimizerConfig

BLOCK = 256
"""Numbers that share a scale (bitsandbytes' own, which is no option)."""
TABLE = 256 * 4
"""Bytes of a table of the 256 values that 8 bits stand for; all parameters share it."""
NUMBERS = {"adamw": (1, 1), "lion": (1,), "ademamix": (2, 1)}
"""How many numbers for each of a parameter the first state holds, and the second, where there is one."""


def make_optimizer(config: BnbOptimizerConfig, named: list[tuple[str, Any]], settings: OptimizerSettings) -> Any:
    """One class of bitsandbytes for each kind; width and pages are its arguments."""
    from bitsandbytes.optim.adamw import AdamW
    from bitsandbytes.optim.ademamix import AdEMAMix
    from bitsandbytes.optim.lion import Lion

    classes: dict[str, Any] = {"adamw": AdamW, "lion": Lion, "ademamix": AdEMAMix}
    options: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": config.betas,
        "weight_decay": settings.weight_decay,
        "optim_bits": config.bits,
        "min_8bit_size": config.smallest,
        "is_paged": config.paged,
    }
    if config.kind != "lion":
        options["eps"] = config.eps
    if config.kind == "ademamix":
        ramp = settings.total_steps if config.ramp_up and settings.total_steps else None
        options |= {"alpha": config.alpha, "t_alpha": ramp, "t_beta3": ramp}
    return classes[config.kind](decay_groups(named, settings.weight_decay), **options)


def estimate_states(config: BnbOptimizerConfig, estimate: Estimate) -> Estimate:
    """Add the states of all that trains in the skeleton; they are of 8 or 32 bits whatever trains in."""

    def bytes_of(parameter: Any) -> int:
        size, kept = int(parameter.numel()), sum(NUMBERS[config.kind])
        if config.bits == 32 or size < config.smallest:
            return 4 * kept * size
        return kept * (size + 4 * math.ceil(size / BLOCK))

    return states_estimate(estimate, bytes_of)
