"""The hook that LoRA publishes, for plugins that change what kind of low-rank adapter is made."""

from __future__ import annotations

from typing import Any

from tunekit.hooks import hookspec


class LoraHooks:
    """The hooks of `tunekit-lora`."""

    @hookspec("chain")
    def tunekit_lora_config(self, config: Any) -> Any:
        """Change the PEFT configuration that the adapter is made from.

        Kind: chain over `config`, a `peft.LoraConfig`.
        When: before a fresh adapter is attached, and for the estimate; not when a saved adapter is loaded, which brings
            its own configuration.
        Changes: nothing; return a changed copy (`dataclasses.replace(config, ...)`).
        Returns: the configuration, a `peft.LoraConfig`.
        Raises: TunekitError naming the option and the value that do not fit.
        Example: DoRA sets `use_dora`.
        """
        raise AssertionError
