"""Reading: a source of the recipe becomes rows, wherever its bytes lie and whatever form they have."""

from .sources import open_source

__all__ = ["open_source"]
