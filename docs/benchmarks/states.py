"""A plugin in a file: writes down how many bytes the optimiser's states take after each step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunekit import Plugin, PluginConfig, hookimpl
from tunekit.values import StageContext

FILE = "optimiser_bytes"


class NoOptions(PluginConfig):
    """No options."""


class States(Plugin[NoOptions]):
    """Measures the states of the optimiser."""

    @hookimpl
    def tunekit_train_callbacks(self, callbacks: tuple[Any, ...], context: StageContext) -> tuple[Any, ...]:
        """Look after each step."""
        from transformers import TrainerCallback

        class Look(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **more: Any) -> None:
                (context.folder / FILE).write_text(str(state_bytes(optimizer)))

        return (*callbacks, Look())


def state_bytes(optimizer: Any) -> int:
    """The bytes of all tensors that an optimiser keeps, those that several parameters share counted once."""
    found: dict[int, int] = {}

    def add(value: Any) -> None:
        if parts := getattr(value, "tensor_attrs", ()):
            for part in parts:  # a tensor of torchao: codes, scales and their table
                add(getattr(value, part))
        elif hasattr(value, "untyped_storage"):
            storage = value.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()

    for state in optimizer.state.values():
        for value in state.values():
            add(value)
    return sum(found.values())


def read(folder: Path) -> int:
    """What was written last in a run's folder."""
    (path,) = folder.rglob(FILE)
    return int(path.read_text())
