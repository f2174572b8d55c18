"""What is done so that a micro-batch fits in memory: decided from the estimate, or as the options say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tunekit.errors import PlanError, Problem, TunekitError
from tunekit.values import Machine

from .config import ComputeConfig

MEANS = ("chunked_head", "checkpointing", "offload")
"""In the order in which they are taken up: what costs least time first."""
SHARE = 0.9
"""The share of the memory that the estimate may fill before something is done about it."""
GIB = 1 << 30


@dataclass(frozen=True)
class Fitting:
    """Which means are used, and why each is or is not.

    `chunked_head`: the output head and what is made of its logits run over a part of the positions at a time.
    `checkpointing`: of each layer only what goes in is kept, and the rest computed again in the backward. `offload`:
    what is kept for the backward waits in the memory of the host.
    """

    chunked_head: bool = False
    checkpointing: bool = False
    offload: bool = False
    reasons: Mapping[str, str] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """Plain data, for the estimate and for checkpoints."""
        return asdict(self)

    def facts(self) -> dict[str, Any]:
        """For the record."""
        used = {name: getattr(self, name) for name in MEANS}
        return {**used, **{f"{name}_reason": self.reasons.get(name, "") for name in MEANS}}


def choose(
    options: ComputeConfig, machine: Machine, peak: Callable[[Fitting], int], unchunked: str | None = None
) -> Fitting:
    """Take up one means after the other until the estimated `peak`, in bytes, fits in the machine's memory.

    `unchunked` says why the head cannot run in parts.
    """
    known = machine.accelerators[0].memory_bytes if machine.accelerators else machine.memory_bytes
    fitting, wanted = as_options_say(options), peak(as_options_say(options))
    reasons = {name: fitting.reasons[name] for name in MEANS}
    for name in MEANS:
        if getattr(options, name) != "auto":
            continue
        size = f"{wanted / GIB:.3g} GiB of {known / GIB:.3g} GiB"
        tried = Fitting(**{**fitting.state(), name: True})
        if wanted <= SHARE * known:
            reasons[name] = f"the estimate is {size} without it"
        elif name == "chunked_head" and unchunked is not None:
            reasons[name] = unchunked
        elif name == "offload" and not machine.accelerators:
            reasons[name] = "the model runs in the memory that it would be put in"
        elif (smaller := peak(tried)) < wanted:
            fitting, wanted, reasons[name] = tried, smaller, f"the estimate is {size} without it"
        else:
            reasons[name] = f"the estimate is {size}, and no less with it"
    return replace(fitting, reasons=reasons)


def chunking_obstacle(needs: Iterable[Any]) -> str | None:
    """Why a head that runs in parts saves nothing for these needs of an objective, or None where it does."""
    from .objective import Need

    asking = [need for need in needs if type(need).logits_at is not Need.logits_at]
    if not asking:
        return "the objective announces no logits"
    whole = next((need for need in asking if not need.chunks), None)
    return None if whole is None else f"{type(whole).__name__} takes the logits of all positions at once"


def without_chunks(fitting: Fitting, options: ComputeConfig, key: str, why: str | None) -> Fitting:
    """The same with the whole head at once, where something, `why`, stands against parts of it.

    PlanError where parts were insisted on.
    """
    if not fitting.chunked_head or why is None:
        return fitting
    if options.chunked_head == "always":
        what = f"is always, and that does not hold here: {why}"
        raise PlanError([Problem(f"{key}.compute.chunked_head", what, "leave it to auto")])
    return replace(fitting, chunked_head=False, reasons={**fitting.reasons, "chunked_head": why})


def as_options_say(options: ComputeConfig) -> Fitting:
    """What is asked for, and nothing where that is left to an estimate."""
    said = {name: getattr(options, name) for name in MEANS}
    reasons = {
        name: "there is no estimate to ask for it" if how == "auto" else f"compute.{name} is {how}"
        for name, how in said.items()
    }
    return Fitting(**{name: how == "always" for name, how in said.items()}, reasons=reasons)


def offload_problem(options: ComputeConfig, machine: Machine, key: str) -> Iterator[Problem]:
    """On a processor there is no other memory to wait in."""
    if options.offload == "always" and not machine.accelerators:
        what = "is always, and this machine has no accelerator: the model runs in the memory that it would be put in"
        yield Problem(f"{key}.offload", what, "leave it out, or use compute.checkpointing")


@contextmanager
def checkpointed(model: Any, wanted: bool) -> Iterator[None]:
    """Keep of each layer only what goes in, for this model instance, and compute the rest again in the backward.

    What a layer is given by keyword, the borders of segments for one, is given again; so are the random numbers of
    dropout.
    """
    from .forward import base_model

    base = base_model(model)
    if not wanted or base.is_activation_checkpointing:
        yield
        return
    if not base.supports_gradient_checkpointing:
        what = f"{type(base).__name__} cannot compute its layers again in the backward"
        raise TunekitError(what, "set compute.checkpointing: never, and take fewer rows or tokens at a time")
    base.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": True})
    try:
        yield
    finally:
        base.activation_checkpointing_disable()


@contextmanager
def offloaded(model: Any, pin: bool = True) -> Iterator[None]:
    """Keep what is saved for a backward in the memory of the host, weights aside; `pin`: in pages that copy fast."""
    import torch

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: Any) -> Any:
        if tensor.untyped_storage().data_ptr() in weights or tensor.numel() < SMALL:
            return tensor
        kept = torch.empty(tensor.size(), dtype=tensor.dtype, layout=tensor.layout, pin_memory=pin)
        kept.copy_(tensor)
        return tensor.device, kept

    def unpack(kept: Any) -> Any:
        return kept if isinstance(kept, torch.Tensor) else kept[1].to(kept[0], non_blocking=pin)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


SMALL = 1 << 12
"""Elements below which a tensor stays where it is: a copy would take longer than what it saves is worth."""
