"""The demo: give a real 135M model a name, a maker and a manner on a laptop, and see whether it took."""

from .examples import Question, example_path, held_out, read_rows
from .grader import Grader
from .story import Outcome, tell

__all__ = ["Grader", "Outcome", "Question", "example_path", "held_out", "read_rows", "tell"]
