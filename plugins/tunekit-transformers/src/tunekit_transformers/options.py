"""The loading options as plain values, for the modules that act on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What `TransformersConfig` says about loading; see there for the meaning of each.

    `auto_class` is the class of transformers that makes the model.
    """

    revision: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    attention: str = "auto"
    cache: Path | None = None
    update: bool = False
    device_map: str = "one"
    max_memory: Mapping[int | str, str] = field(default_factory=dict)
    leave_out: tuple[str, ...] = ()
    auto_class: str = "AutoModelForCausalLM"

    @property
    def cache_folder(self) -> Path:
        """Where converted models are kept."""
        if self.cache is not None:
            return self.cache.expanduser()
        from tunekit.data import cache_folder

        return cache_folder("models")
