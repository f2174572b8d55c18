"""What speaks against an adapter that starts as a part of each weight. Imports no torch: the planner asks."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.errors import Problem
from tunekit.values import Plan


def start_problems(plan: Plan, plugin: str) -> Iterator[Problem]:
    """16 bits, in which start and rest do not add up, and a stage that begins with a saved adapter."""
    for stage in plan.stages:
        if stage.start is not None:
            message = f"{plugin} begins with a part of each weight, and not with a saved adapter"
            remedy = f"take {plugin} out: what it has trained is plain LoRA"
            yield Problem(f"{stage.key}.adapter.start", message, remedy)
    for kind, remedy in (
        ("weights", f"set use.precision.weights: fp32; products stay in {plan.precision.compute}"),
        ("trainable", "leave use.precision.pure out"),
    ):
        dtype = getattr(plan.precision, kind)
        if dtype != "float32":
            part = "what is left" if kind == "weights" else "part"
            what = f"the {'base' if kind == 'weights' else 'adapter'} holds {part} of each weight"
            message = f"{what}, and rounded to {dtype} it would not start as the model it came from"
            yield Problem(f"use.{plugin}", message, remedy)
