"""Longer contexts: rotary positions scaled by what the wanted length asks for."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

from pydantic import Field, model_validator

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Estimate, EstimateRequest, LoadRequest, Machine, Plan

__all__ = ["Rope", "RopeConfig"]


class RopeConfig(PluginConfig):
    """The options of scaled rotary positions."""

    scaling: Literal["none", "linear", "dynamic", "yarn", "llama3"] = Field(
        "yarn",
        description="how positions are scaled; none: plain positions, also where the model comes with scaled ones",
    )
    length: int | None = Field(
        None,
        ge=2,
        description="tokens that the model is to read; the factor is this over the length it was trained for, rounded "
        "up to a whole number",
    )
    original: int | None = Field(
        None, ge=2, description="tokens that the model was trained for; unset: what its config says"
    )

    @model_validator(mode="after")
    def _go_together(self) -> RopeConfig:
        if self.scaling == "none" and (self.length is not None or self.original is not None):
            raise ValueError("length and original mean nothing where scaling is none; leave them out")
        if self.scaling != "none" and self.length is None:
            raise ValueError("length is missing: say how many tokens the model is to read")
        if self.length and self.original and self.length <= self.original:
            raise ValueError(f"length is {self.length}, and the model reads {self.original} as it is; leave rope out")
        return self


class Rope(Plugin[RopeConfig]):
    """Rotary positions for longer texts than the model was trained on (YaRN, arXiv 2309.00071, and its relatives)."""

    @property
    def provides(self) -> frozenset[str]:
        """Other positions, on which an adapter of the plain ones can be trained on where they reach further."""
        return frozenset({"positions.scaled"} | ({"base.extended"} if self.config.scaling != "none" else set()))

    @property
    def base(self) -> dict[str, Any]:
        """How positions are scaled."""
        said = self.config.scaling, self.config.length, self.config.original
        return {k: v for k, v in zip(("scaling", "length", "original"), said, strict=True) if v is not None}

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse stages whose texts are longer than what is asked for here."""
        from .checks import too_long

        return too_long(self.config, plan)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Say what the factor is, and refuse what a stage cannot train with."""
        from .checks import estimate_scaling

        return estimate_scaling(self.config, request.plan, estimate)

    @hookimpl
    def tunekit_before_load(self, request: LoadRequest) -> LoadRequest:
        """Change the rotary positions in the model's config."""
        from .scaling import scale_

        return request.configured(partial(scale_, options=self.config))
