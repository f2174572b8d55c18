"""The hooks that LoRA publishes, for plugins that change what kind of low-rank adapter is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunekit.hooks import hookspec
from tunekit.values import Context, ModelBundle


class LoraHooks:
    """The hooks of `tunekit-lora`."""

    @hookspec("chain")
    def tunekit_lora_config(self, config: Any, model: Any) -> Any:
        """Change the PEFT configuration that the adapter is made from.

        Kind: chain over `config`, a `peft.LoraConfig`; `model` is what it is for, for the estimate without values.
        When: before a fresh adapter is attached, and for the estimate of one; not for a saved adapter, which brings its
            own configuration: a plugin that asks for something else refuses a stage that begins with one.
        Changes: nothing; return a changed copy (`dataclasses.replace(config, ...)`).
        Returns: the configuration, a `peft.LoraConfig`.
        Raises: TunekitError naming the option and the value that do not fit.
        Example: DoRA sets `use_dora`.
        """
        raise AssertionError

    @hookspec("chain")
    def tunekit_lora_attached(self, model: Any, bundle: ModelBundle, context: Context) -> Any:
        """Finish a fresh adapter once it is stored in the dtype it trains in.

        Kind: chain over `model`, a `peft.PeftModel`. `bundle` is what it was put on, `context.data` what it learns.
        When: right after a fresh adapter is attached; not for a saved one, and not for the estimate.
        Changes: the adapter's values and the base's, in place; neither shapes nor what trains. Random numbers follow
            the seed of the run.
        Returns: the model it was given.
        Raises: TunekitError where the adapter cannot be finished.
        Example: DoRA measures the lengths of the base's rows in full precision; EVA looks at the inputs of each layer.
        """
        raise AssertionError

    @hookspec("chain")
    def tunekit_lora_saved(self, folder: Path, model: Any) -> Path:
        """Change the files of an adapter that has just been written.

        Kind: chain over `folder`.
        When: when the result of a stage is saved, in PEFT's format; not for a checkpoint inside a stage.
        Changes: the files in the folder, so that PEFT can still load it onto the model as it was named.
        Returns: the folder it was given.
        Raises: TunekitError where it cannot be written.
        Example: PiSSA writes the difference to where it started, for the base that it has changed in memory.
        """
        raise AssertionError

    @hookspec("chain")
    def tunekit_lora_reopened(self, model: Any, folder: Path) -> Any:
        """Bring a saved adapter back to what it was when it was saved.

        Kind: chain over `model`, a `peft.PeftModel`.
        When: after the adapter in `folder` was loaded, to answer with or to be trained on by a next stage.
        Changes: adapter and base, in place, so that the model says what it said.
        Returns: the model it was given.
        Raises: TunekitError where the folder does not fit.
        Example: PiSSA takes the start out of the adapter again, and out of the base.
        """
        raise AssertionError
