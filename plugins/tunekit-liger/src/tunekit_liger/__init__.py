"""Liger's fused kernels for norms and MLPs, on one loaded model."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field, model_validator
from typing_extensions import Self

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Estimate, EstimateRequest, Machine, ModelBundle, Plan, Report

__all__ = ["Liger", "LigerConfig"]


class LigerConfig(PluginConfig):
    """Which parts of the model are computed by Liger's kernels."""

    rms_norm: bool = Field(True, description="one kernel for each RMS norm, which keeps one number a row for backward")
    mlp: bool = Field(True, description="one kernel for activation times gate, which keeps no product of the two")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.rms_norm and not self.mlp:
            raise ValueError("rms_norm and mlp are both off, so nothing would change; leave liger out")
        return self


class Liger(Plugin[LigerConfig]):
    """Fused Triton kernels (Liger Kernel: Efficient Triton Kernels for LLM Training, arXiv 2410.10989)."""

    provides = frozenset({"kernels.liger"})

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse a machine without CUDA, and one without Triton or the kernels."""
        from .checks import problems

        return problems(self, plan)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Refuse a model none of whose layers the kernels are known to compute."""
        from .layers import find

        if estimate.skeleton is not None:
            find(estimate.skeleton, self.config)
        return estimate

    @hookimpl
    def tunekit_patch(self, bundle: ModelBundle) -> Report:
        """Give the norms and MLPs of this model another forward. No class is touched.

        A run that is opened where the kernels cannot run answers by the layers themselves.
        """
        from .checks import runs_on
        from .layers import fuse_

        if not runs_on(bundle.precision.device):
            return Report("the model's own layers: the kernels cannot run here")
        return fuse_(bundle.model, self.config)
