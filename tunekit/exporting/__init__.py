"""Exports of a finished run: written beside, read again and compared, judged, and only then given their name."""

from .card import shown_model
from .export import CARD, DETAILS, Export
from .judging import judge, judge_earlier
from .making import make_export

__all__ = ["CARD", "DETAILS", "Export", "judge", "judge_earlier", "make_export", "shown_model"]
