"""The planner: pure, printable, and complete in its complaints."""

from .bases import EXTENDED, note_base, other_base
from .exports import known_targets, plan_one_export
from .planner import add_estimate, make_plan

__all__ = ["EXTENDED", "add_estimate", "known_targets", "make_plan", "note_base", "other_base", "plan_one_export"]
