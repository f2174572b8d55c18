"""The planner: pure, printable, and complete in its complaints."""

from .configuring import Purpose
from .exports import known_targets, plan_one_export
from .planner import add_estimate, make_plan

__all__ = ["Purpose", "add_estimate", "known_targets", "make_plan", "plan_one_export"]
