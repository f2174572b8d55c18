"""Whole models, averaged gradients: torch's DistributedDataParallel."""

from __future__ import annotations

from typing import Any

from torch.nn.parallel import DistributedDataParallel

from tunekit_train import Job

from . import DdpConfig
from .group import Group


class DataParallel(Group):
    """DDP, prepared by accelerate."""

    name = "ddp"

    def __init__(self, config: DdpConfig) -> None:
        self.config = config

    def arguments(self, job: Job) -> dict[str, Any]:
        """Whether to look for weights that take no part."""
        return {"ddp_find_unused_parameters": self.config.find_unused}

    def mistake(self, prepared: Any) -> str | None:
        """Anything but DDP."""
        return None if isinstance(prepared, DistributedDataParallel) else type(prepared).__name__
