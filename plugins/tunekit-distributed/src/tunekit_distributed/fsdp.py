"""Each weight in parts, gathered a layer at a time: torch's fully_shard (FSDP2), with no help from accelerate.

accelerate 1.15 turns FSDP on CPUs into DDP without a word, so the model is cut here, and handed to it as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tunekit.errors import PlanError, Problem, nearest
from tunekit_train.forward import base_model

from . import FsdpConfig
from .group import Group


class FullyShard(Group):
    """FSDP2."""

    name = "fsdp2"

    def __init__(self, config: FsdpConfig) -> None:
        self.config = config
        self._states: list[list[dict[str, Any]]] = []

    def cut_(self, model: Any) -> None:
        """Cut each layer, then what is left."""
        mesh = init_device_mesh(self.device, (self.count,))
        for layer in layers_of(model, self.config.wrap):
            fully_shard(layer, mesh=mesh, reshard_after_forward=self.config.reshard)
        fully_shard(model, mesh=mesh, reshard_after_forward=False)

    def accelerate_(self, accelerator: Any) -> None:
        """Leave the model as it is, which is cut already, and average gradients in the last micro-batch only."""

        def prepare_model(self: Any, model: Any, **_: Any) -> Any:
            return model

        @contextmanager
        def no_sync(self: Any, model: Any) -> Iterator[None]:
            model.set_requires_gradient_sync(False)
            try:
                yield
            finally:
                model.set_requires_gradient_sync(True)

        accelerator.prepare_model = MethodType(prepare_model, accelerator)
        accelerator.no_sync = MethodType(no_sync, accelerator)

    def mistake(self, prepared: Any) -> str | None:
        """Anything but a model whose weights are all in parts."""
        if not isinstance(prepared, FSDPModule):
            return type(prepared).__name__
        parts: Any = prepared
        found = [name for name, parameter in parts.named_parameters() if not isinstance(parameter, DTensor)]
        return f"FSDP2 without {found[0]}" if found else None

    @contextmanager
    def saving(self, model: Any, optimizer: Any) -> Iterator[None]:
        """Gather the weights, and the optimiser's states for whoever asks for them next: Trainer, in one process."""
        inner = getattr(optimizer, "optimizer", optimizer)
        states = {key: {name: gathered(each) for name, each in state.items()} for key, state in inner.state.items()}
        self._states.append(list(states.values()) if self.first else [])
        with self.whole(model):
            yield

    def optimized_(self, optimizer: Any) -> None:
        """Have the optimiser save its states whole and take them up in parts."""
        optimizer.register_state_dict_post_hook(self._whole_states)
        optimizer.register_load_state_dict_pre_hook(_cut_states)

    def _whole_states(self, optimizer: Any, told: dict[str, Any]) -> dict[str, Any]:
        if not self._states:
            return told
        return {**told, "state": dict(zip(told["state"], self._states.pop(), strict=True))}

    @contextmanager
    def whole(self, model: Any) -> Iterator[None]:
        """Have the model say its weights whole, in the first process: its own `state_dict` says its part."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(model, options=options)
        if not self.first:
            yield
            return
        first_names: dict[int, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            tied = first_names.setdefault(id(parameter), name)
            if name in state and tied in state:
                state[name] = state[tied]  # weights that are tied are one, for whoever writes them
        model.state_dict = lambda *_, **__: dict(state)
        try:
            yield
        finally:
            del model.state_dict


def gathered(value: Any) -> Any:
    """A state of an optimiser, whole and on the CPU; every process has to ask for it."""
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def _cut_states(optimizer: Any, told: dict[str, Any]) -> dict[str, Any]:
    """Cut whole states as the parameters are cut that they belong to. Each process reads all, and keeps its part."""
    numbers = [number for group in told["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {}
    for number, parameter in zip(numbers, parameters, strict=True):
        whole = told["state"].get(number, {})
        state[number] = {name: _cut(each, parameter) for name, each in whole.items()}
    return {**told, "state": {number: each for number, each in state.items() if each}}


def _cut(value: Any, parameter: Any) -> Any:
    if not isinstance(value, torch.Tensor) or isinstance(value, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(
        value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )


def layers_of(model: Any, wrap: tuple[str, ...]) -> list[Any]:
    """The layers that are gathered one at a time: by the names of their classes, else those the model names itself.

    PlanError where the model has none of these classes.
    """
    names = wrap or tuple(base_model(model)._no_split_modules or ())
    found = [module for module in model.modules() if type(module).__name__ in names]
    if not found:
        kinds = sorted({type(module).__name__ for module in model.modules()})
        close = nearest(names[0], kinds) if names else None
        what = (
            f"names {', '.join(names)}, of which the model has none"
            if names
            else "is not set, and the model names none"
        )
        remedy = f"did you mean {close}?" if close else f"the model has {', '.join(kinds)}"
        raise PlanError([Problem("use.fsdp.wrap", what, remedy)])
    return found
