"""From the options to torchao's own configurations."""

from __future__ import annotations

from typing import Any

from . import Kind


def base_config(kind: Kind, group: int | None) -> Any:
    """What torchao calls this kind; `group` weights share a scale, or a whole row does.

    `set_inductor_config` is off: it changes the settings of torch.compile for the whole process.
    """
    import torch
    from torchao import quantization  # type: ignore[import-untyped,unused-ignore]

    ao: Any = quantization
    int4 = getattr(torch, "int4")  # noqa: B009  torch does not tell type checkers of it
    rows = ao.PerRow() if group is None else ao.PerGroup(group)
    axis = ao.PerAxis(0) if group is None else ao.PerGroup(group)
    makers = {
        "int8": lambda: ao.Int8WeightOnlyConfig(granularity=rows, set_inductor_config=False),
        "int4": lambda: ao.IntxWeightOnlyConfig(weight_dtype=int4, granularity=axis),
        "float8": lambda: ao.Float8WeightOnlyConfig(granularity=rows, set_inductor_config=False),
        "int8-dynamic": lambda: ao.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False),
        "int4-dynamic": lambda: ao.Int8DynamicActivationIntxWeightConfig(weight_dtype=int4, weight_granularity=axis),
        "float8-dynamic": lambda: ao.Float8DynamicActivationFloat8WeightConfig(
            granularity=ao.PerRow(), set_inductor_config=False
        ),
    }
    return makers[kind]()
