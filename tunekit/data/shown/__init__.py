"""Examples as the model will learn from them, token by token, in a terminal and in a notebook."""

from .examples import Gap, Shown, ShownItem, ShownSequence
from .pieces import Piece, pieces_of

__all__ = ["Gap", "Piece", "Shown", "ShownItem", "ShownSequence", "pieces_of"]
