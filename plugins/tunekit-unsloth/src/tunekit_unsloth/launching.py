"""One child process, in which unsloth is imported before anything that it patches."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from tunekit.values import Launch, Processes
from tunekit_distributed.crew import Crew

PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What tells a process its place among several. Accelerate would take the one child for a part of a crowd."""


def work(launch: Launch, device: str) -> Processes | None:
    """Start the child and wait for it; in the child itself, say that it is alone and goes on."""
    if launch.rank is not None:
        for name in PLACE:
            os.environ.pop(name, None)
        return Processes()
    command = (sys.executable, "-m", "tunekit_unsloth.child", str(launch.folder.resolve()))
    Crew(replace(launch, command=command), 1, device).work()
    return None
