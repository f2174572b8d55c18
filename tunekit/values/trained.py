"""What of a model trains: its parameters, those in like places of all layers together."""

from __future__ import annotations

from typing import Any

from .plan import Trained

WRAPPERS = frozenset({"base_model", "base_layer", "model", "module", "default", "weight", "modules_to_save"})
"""Parts of a parameter's name that say how it is wrapped and not where it is."""


def trained_parts(model: Any, dtype: str | None = None) -> tuple[Trained, ...]:
    """What trains in a model, in its order; parameters count once, however many names they have.

    `model` is a `torch.nn.Module`, on the meta device too. `dtype` is what they will be stored in; None: as they are.
    """
    found: dict[tuple[str, str], list[int]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            stored = dtype or str(parameter.dtype).removeprefix("torch.")
            found.setdefault((_place(name), stored), []).append(getattr(parameter, "ds_numel", parameter.numel()))
    return tuple(Trained(name, len(sizes), sum(sizes), stored) for (name, stored), sizes in found.items())


def _place(name: str) -> str:
    """The name without wrappers and adapters' names, numbers as `*`: layers.*.self_attn.q_proj.lora_A."""
    parts = ["*" if part.isdigit() else part for part in name.split(".")]
    kept = [part for part in parts if part not in WRAPPERS and not part.startswith("adapter_")]
    return ".".join(kept) or name
