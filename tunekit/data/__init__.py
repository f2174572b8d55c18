"""The data of a stage: sources opened and recognised, mixed into one stream of examples, every row accounted for."""

from .mixing import Interleaved, shuffle_buffer
from .reading import count_rows, open_examples
from .surroundings import cache_folder, load_tokenizer, preparing

__all__ = [
    "Interleaved",
    "cache_folder",
    "count_rows",
    "load_tokenizer",
    "open_examples",
    "preparing",
    "shuffle_buffer",
]
