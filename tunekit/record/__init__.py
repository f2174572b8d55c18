"""The record of a run on disk."""

from .files import append_line, plain, read_json, read_lines, write_json, write_text
from .onlooker import Onlooker
from .record import Record, Status, estimate_mapping, origins, plan_mapping

__all__ = [
    "Onlooker",
    "Record",
    "Status",
    "append_line",
    "estimate_mapping",
    "origins",
    "plain",
    "plan_mapping",
    "read_json",
    "read_lines",
    "write_json",
    "write_text",
]
