"""The peak memory of a stage, measured."""

from __future__ import annotations

import re
import sys
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Peak memory since it was made, in bytes: of the accelerator where one is used, else of the whole process."""

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            self.reset = _reset_high_water_mark()

    def read(self) -> int:
        """The peak so far; on systems that cannot reset it, that of the process since it started."""
        if self.device == "cuda":
            import torch

            return torch.cuda.max_memory_allocated()
        return _high_water_mark()


def _reset_high_water_mark() -> bool:
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _high_water_mark() -> int:
    try:
        match = re.search(r"^VmHWM:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        match = None
    if match:
        return int(match[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
