"""The data of a stage: sources opened and recognised, mixed into one stream of examples, every row accounted for."""

from .code import code_fingerprint
from .mixing import Interleaved, shuffle_buffer
from .reading import count_rows, open_examples
from .recorded import RecordedData
from .report import DataReport, report_data
from .stage_data import StageData
from .surroundings import cache_folder, first_data, load_tokenizer, prepare, preparing

__all__ = [
    "DataReport",
    "Interleaved",
    "RecordedData",
    "StageData",
    "cache_folder",
    "code_fingerprint",
    "count_rows",
    "first_data",
    "load_tokenizer",
    "open_examples",
    "prepare",
    "preparing",
    "report_data",
    "shuffle_buffer",
]
