"""Several adapters by name on one model: which is active, taking one off, adding one into the weights."""

from __future__ import annotations

from typing import Any

import peft
import torch

from tunekit.values import DEFAULT_ADAPTER

PREFIX = "adapter_"


class LoraAdapters:
    """What `tunekit.values.Adapters` asks for, by PEFT's own means."""

    def names(self, model: Any) -> tuple[str, ...]:
        """The adapters on the model, oldest first."""
        return tuple(name.removeprefix(PREFIX) for name in model.peft_config) if is_adapted(model) else ()

    def switch(self, model: Any, name: str | None) -> Any:
        """Make this the one that computes and trains; with None, none does."""
        if name is not None:
            activate_(model, name)
        elif is_adapted(model):
            model.base_model.disable_adapter_layers()
            model.requires_grad_(False)
        return model

    def drop(self, model: Any, name: str) -> Any:
        """Take it off, and what else the wrapper keeps by its name, such as a value head."""
        others = [other for other in self.names(model) if other != name]
        if not others:
            return model.unload()
        activate_(model, others[0])  # PEFT warns where it has to choose the next one itself
        model.delete_adapter(peft_name(name))
        for kept in model.children():
            if isinstance(kept, torch.nn.ModuleDict) and peft_name(name) in kept:
                del kept[peft_name(name)]
        return model

    def merge(self, model: Any, name: str) -> Any:
        """Add it into the weights; those that are no finite numbers afterwards are refused by PEFT."""
        return model.merge_and_unload(safe_merge=True, adapter_names=[peft_name(name)])


def peft_name(name: str) -> str:
    """The name that PEFT is given.

    PEFT finds an adapter's weights by its name anywhere in theirs: one that is called `l` would be seen in `layers`.
    """
    return name if name == DEFAULT_ADAPTER else f"{PREFIX}{name}"


def is_adapted(model: Any) -> bool:
    """Whether PEFT has wrapped the model already."""
    return isinstance(model, peft.PeftModel)


def bare(model: Any) -> Any:
    """The model inside the wrapper, or the model itself."""
    return model.get_base_model() if is_adapted(model) else model


def activate_(model: Any, name: str) -> None:
    """Compute with this adapter alone, and let nothing else train."""
    model.base_model.enable_adapter_layers()
    model.requires_grad_(False)
    model.set_adapter(peft_name(name))
