"""The planner: pure, printable, and complete in its complaints."""

from .configuring import Purpose
from .planner import add_estimate, make_plan

__all__ = ["Purpose", "add_estimate", "make_plan"]
