"""Shifted sparse attention: long sequences attend in groups while they are trained on, half of the heads shifted."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Estimate, EstimateRequest, Machine, ModelBundle, Plan, Report

__all__ = ["S2Attention", "S2AttentionConfig"]


class S2AttentionConfig(PluginConfig):
    """The options of shifted sparse attention."""

    group: int = Field(
        2048,
        ge=2,
        multiple_of=2,
        description="tokens of a group, an even number; a sequence of no more tokens is attended to whole. The paper "
        "uses a quarter of the longest sequence: 2048 for 8192",
    )


class S2Attention(Plugin[S2AttentionConfig]):
    """Shifted sparse attention while training (LongLoRA, arXiv 2309.12307)."""

    provides = frozenset({"attention.sparse"})
    # An answer's probability would not be the one it was sampled with.
    conflicts = frozenset({"stage.rewarded", "attention.chosen"})

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse a group that no sequence exceeds, and stages that it could not act in."""
        from .checks import problems

        return problems(self, plan)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Refuse stages that compare what is said in training with what is in evaluation, and models without groups."""
        from .checks import refuse_comparing, refuse_unsuited

        refuse_comparing(self, request.plan)
        refuse_unsuited(self, request.plan, estimate.skeleton)
        return estimate

    @hookimpl
    def tunekit_patch(self, bundle: ModelBundle) -> Report:
        """Give this model another attention, which in evaluation is the ordinary one."""
        from .attention import attend_in_groups_

        group = self.config.group
        undo = attend_in_groups_(bundle.model, group)
        summary = f"sequences of more than {group} tokens attend in groups of {group} while training, half of the "
        return Report(f"{summary}heads shifted by {group // 2}", {"group": group}, undo)
