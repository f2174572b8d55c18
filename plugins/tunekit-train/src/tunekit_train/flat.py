"""Flat files of records, read by place: what is not asked for is never in memory."""

from __future__ import annotations

from io import FileIO
from typing import Any

import numpy as np
import numpy.typing as npt

Records = npt.NDArray[Any]


class FlatFile:
    """An open file of records of one dtype.

    It is read and not memory-mapped. Reading a sequence that way is as fast, and the pages of a mapped file would count
    as memory of this process: 2 GB of tokens would look like 2 GB in use.
    """

    def __init__(self, file: FileIO, dtype: np.dtype[Any]) -> None:
        self.file, self.dtype = file, dtype

    def read(self, start: int, count: int) -> Records:
        """So many records from a place on, in an array of their own that may be written to."""
        found = np.empty(count, self.dtype)
        if count:
            self.file.seek(start * self.dtype.itemsize)
            self._fill(found.view(np.uint8).data)
        return found

    def _fill(self, place: memoryview) -> None:
        while place:
            got = self.file.readinto(place)
            if not got:
                raise EOFError(f"{self.file.name!r} ends before its time")
            place = place[got:]
