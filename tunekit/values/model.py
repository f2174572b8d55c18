"""The model on its way from a name to something that trains and answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from .machine import Precision
from .tokens import Prepared

Merge = Literal["exact", "dequantize", "refuse"]
DEFAULT_ADAPTER = "default"
"""The name of the adapter that stages share where they name none."""


class Adapters(Protocol):
    """What a plugin can do that carries several adapters by name on one model, of which one is active at most.

    Only the active one is computed with, trains and is saved. What is returned is the model: it may be another object.
    """

    def names(self, model: Any) -> tuple[str, ...]:
        """The adapters on the model, oldest first."""
        ...

    def switch(self, model: Any, name: str | None) -> Any:
        """Make this adapter the active one; with None the model is the base, bit for bit."""
        ...

    def drop(self, model: Any, name: str) -> Any:
        """Take an adapter off, with all that is kept by its name; its memory is free once nobody else holds it."""
        ...

    def merge(self, model: Any, name: str) -> Any:
        """Add the only adapter into the weights, and return the model without any."""
        ...


@dataclass(frozen=True)
class Quantization:
    """How weights are stored, and what that allows.

    `arguments` go to the loader (for transformers: keyword arguments of `from_pretrained`); `after_load` takes the
    loaded model and returns it with its modules swapped, for methods the loader does not know. `adapter_only` means the
    weights cannot be trained themselves. `merge` says how an adapter may be merged: `exact` in place, `dequantize` the
    base first, or `refuse`. `dequantize` takes the loaded model, before any adapter, and returns it with ordinary dense
    layers of the same weights. `bits` is the storage per weight, scales included. `elsewhere` is the config by which
    transformers makes a base for PEFT of the same files, as code for a card; empty: that of `arguments`, if any.
    """

    method: str
    bits: float
    arguments: Mapping[str, Any] = field(default_factory=dict)
    after_load: Callable[[Any], Any] | None = None
    adapter_only: bool = True
    merge: Merge = "dequantize"
    dequantize: Callable[[Any], Any] | None = None
    elsewhere: str = ""


@dataclass(frozen=True)
class LoadRequest:
    """What to load and how. `arguments` are extra keyword arguments for the loader, gathered by `tunekit_before_load`.

    `configure` are changes of the model's config, which the loader makes in place, one after the other, once it has
    read the config and before it makes the model.
    `purpose` is `train` or `infer`: a loader may choose kernels by it, never weights. `tokenizer` is the one loaded and
    patched before, which goes into the bundle. `data` prepares what the first stage learns from, for who has to see
    some of it before the model can be loaded; None where the plan has no stage.
    `revision` is that of a model on the hub which the planned loader reads, by its option of that name: who looks at a
    model before it is loaded looks at the same; None: the default.
    `dense` are modules that a quantiser leaves as they are, as regular expressions of the start of their names: the
    planned loader says so where not all of its models are made to be rounded, in an attribute of that name.
    """

    model: str
    precision: Precision
    quantization: Quantization | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    purpose: Literal["train", "infer"] = "train"
    tokenizer: Any = None
    data: Callable[[], Prepared] | None = None
    configure: tuple[Callable[[Any], None], ...] = ()
    revision: str | None = None
    dense: tuple[str, ...] = ()

    def configured(self, change: Callable[[Any], None]) -> LoadRequest:
        """Return a copy with one more change of the model's config."""
        return replace(self, configure=(*self.configure, change))

    def with_arguments(self, **arguments: Any) -> LoadRequest:
        """Return a copy with these loader arguments added; a clash with another value is the caller's mistake."""
        for name, value in arguments.items():
            if name in self.arguments and self.arguments[name] != value:
                raise ValueError(f"{name} is already {self.arguments[name]!r}, asked for {value!r}")
        return replace(self, arguments={**self.arguments, **arguments})


@dataclass(frozen=True)
class ModelBundle:
    """A loaded model with all that belongs to it.

    `model` is a `torch.nn.Module` with the transformers calling convention, `tokenizer` a transformers tokenizer.
    `saved_adapter` is a folder with a trained adapter: `tunekit_attach_adapter` loads it instead of making a new one.
    `adapter` names the plugin that decided what trains; None means that all weights train. `save` writes what trained
    of a model into a folder from which that plugin loads it again; None means that the model's own `save_pretrained`
    does.
    `adapter_name` is the name under which an adapter is to be attached, and is active once it is; a model that carries
    one already gets it beside. `adapters` switches between them, None where the plugin carries one only.
    """

    model: Any
    tokenizer: Any
    source: str
    precision: Precision
    quantization: Quantization | None = None
    saved_adapter: Path | None = None
    adapter: str | None = None
    save: Callable[[Any, Path], None] | None = None
    adapter_name: str = DEFAULT_ADAPTER
    adapters: Adapters | None = None

    def with_model(self, model: Any, **changes: Any) -> ModelBundle:
        """Return a copy that holds another model object."""
        return replace(self, model=model, **changes)


@dataclass(frozen=True)
class Report:
    """What a patch did: one line for people, details for the record, and how to take it back."""

    summary: str
    details: Mapping[str, Any] = field(default_factory=dict)
    undo: Callable[[], None] | None = None
