"""The processes of a run, joined by torch.distributed."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from typing_extensions import Self

from tunekit.values import Launch
from tunekit_train.parallel import Parallel, Trick

from .tricks import TRICKS

TIMEOUT = timedelta(days=7)
"""Longer than one process ever works alone while the others wait. Who starts them ends the others where one dies."""


class Group(Parallel):
    """Processes that were started with `RANK`, `WORLD_SIZE` and `LOCAL_RANK` in their environment."""

    def join(self, launch: Launch, device: str) -> Self:
        """Meet the others, and take the accelerator that is this process's own."""
        assert launch.rank is not None, "only a process that was started among others joins them"
        self.rank, self.count, self.device = launch.rank, launch.count, device
        if device != "cpu":
            torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", "0")))
        self._made = not dist.is_initialized()
        if self._made:
            backend = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}.get(device)
            dist.init_process_group(backend, timeout=TIMEOUT)
        self._control = dist.new_group(backend="gloo", timeout=TIMEOUT)  # numbers and words, never weights
        return self

    def wait(self) -> None:
        """Wait until all processes are here."""
        dist.barrier(group=self._control)

    def close(self) -> None:
        """Leave, so that no library complains at the end."""
        if self._made:
            dist.destroy_process_group()

    def gather(self, value: Any) -> list[Any]:
        """The value of each process."""
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self._control)
        return values

    def obstacle(self, trick: Trick) -> str | None:
        """As the table says."""
        return TRICKS[trick].get(self.name)
