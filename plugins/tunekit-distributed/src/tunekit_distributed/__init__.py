"""A run in several processes, for the same numbers as in one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from pydantic import Field

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Launch, Machine, Plan, Processes

if TYPE_CHECKING:
    from tunekit_train.tricks import Trick

    from .group import Group


class DistributedConfig(PluginConfig):
    """Options of every way to train in several processes."""

    processes: Literal["auto"] | int = Field(
        "auto",
        description="processes on this machine, at least 1; auto: one for each accelerator, or as many as torchrun has "
        "started",
    )


Config = TypeVar("Config", bound=DistributedConfig)


class Distributed(Plugin[Config]):
    """Starts the processes of a run, or joins them where torchrun has.

    `whole_gradients` says whether each process sees gradients whole, as some optimisers need them.
    """

    whole_gradients: ClassVar[bool] = True

    @property
    @abstractmethod
    def way(self) -> str:
        """Its name in the record and in the table of what holds."""

    def obstacle(self, trick: Trick) -> str | None:
        """Why something that the engine does for a cheaper run does not hold in this way, or None where it does."""
        from .tricks import TRICKS

        return TRICKS[trick].get(self.way)

    @abstractmethod
    def group(self) -> Group:
        """How they train."""

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Find what cannot be shared out, or not in this way."""
        from .checks import problems

        return problems(self, plan, machine)

    @hookimpl
    def tunekit_launch(self, plan: Plan, launch: Launch) -> Processes | None:
        """Start the processes and wait for them; as one of them, join the others."""
        if launch.rank is not None:
            return self.group().join(launch, plan.precision.device)
        from .checks import count_of
        from .crew import Crew

        Crew(launch, count_of(self.config, plan, plan.machine), plan.precision.device).work()
        return None


class DdpConfig(DistributedConfig):
    """Options of DDP."""

    find_unused: bool = Field(
        False,
        description="look in each step for weights that took no part in it, as experts without tokens; costs a little",
    )


class Ddp(Distributed[DdpConfig]):
    """DDP: each process holds the whole model, and gradients are averaged, arXiv:2006.15704."""

    provides = frozenset({"processes", "processes.ddp"})
    way = "ddp"

    def group(self) -> Group:
        """Torch's DistributedDataParallel."""
        from .ddp import DataParallel

        return DataParallel(self.config)


class ZeroConfig(DistributedConfig):
    """Options of ZeRO."""

    stage: Literal[1, 2, 3] = Field(
        3, description="what is in parts: 1 the optimiser's states, 2 gradients too, 3 weights too"
    )
    keep_whole: int = Field(
        100_000, ge=0, description="weights of at most so many numbers stay whole in each process (stage 3)"
    )


class Zero(Distributed[ZeroConfig]):
    """ZeRO through DeepSpeed: each process holds a part of what the model needs, arXiv:1910.02054."""

    whole_gradients = False
    conflicts = frozenset({"quantization"})

    @property
    def provides(self) -> frozenset[str]:
        """Which stage it is."""
        return frozenset({"processes", f"processes.zero{self.config.stage}"})

    @property
    def way(self) -> str:
        """With its stage."""
        return f"zero{self.config.stage}"

    def group(self) -> Group:
        """DeepSpeed."""
        from .zero import ZeroRedundancy

        return ZeroRedundancy(self.config)


class FsdpConfig(DistributedConfig):
    """Options of FSDP2."""

    wrap: tuple[str, ...] = Field(
        (), description="classes of the layers that are gathered one at a time; none: what the model names itself"
    )
    reshard: bool = Field(
        True, description="let go of a layer's weights between forward and backward: less memory, one more gathering"
    )


class Fsdp(Distributed[FsdpConfig]):
    """FSDP2, torch's own: each process holds a part of each weight, arXiv:2304.11277."""

    whole_gradients = False
    provides = frozenset({"processes", "processes.fsdp2"})
    way = "fsdp2"
    # What PiSSA saves is worked out from whole weights of the base.
    conflicts = frozenset({"quantization", "base.changed"})

    def group(self) -> Group:
        """Torch's fully_shard."""
        from .fsdp import FullyShard

        return FullyShard(self.config)


__all__ = [
    "Ddp",
    "DdpConfig",
    "Distributed",
    "DistributedConfig",
    "Fsdp",
    "FsdpConfig",
    "Zero",
    "ZeroConfig",
]
