"""Whether the kernels can run here: no torch, no triton, only metadata."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from typing import Any

from tunekit.errors import Problem
from tunekit.values import Plan

NEEDED = {"triton": "it comes with torch's builds for CUDA", "liger-kernel": "`pip install liger-kernel`"}
"""The distributions that are needed, and how one gets them."""


def problems(plugin: Any, plan: Plan) -> Iterator[Problem]:
    """What stands against running the kernels on this machine."""
    if plan.purpose == "open":
        return  # the layers themselves say the same
    key = next(planned.key for planned in plan.plugins if planned.plugin is plugin)
    if plan.precision.device != "cuda":
        what = f"computes by Triton kernels, which need CUDA, and this is a {plan.precision.device}"
        yield Problem(key, what, "leave it out")
        return
    for name, how in NEEDED.items():
        if not is_installed(name):
            yield Problem(key, f"needs {name}, which is not installed", f"{how}, or leave liger out")


def runs_on(device: str) -> bool:
    """Whether the kernels can compute on a device of this type."""
    return device == "cuda" and all(map(is_installed, NEEDED))


def is_installed(distribution: str) -> bool:
    """Whether a distribution of this name is installed."""
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
