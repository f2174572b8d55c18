"""Load causal language models with transformers, estimate what they need, and answer with them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import (
    Backend,
    Context,
    Estimate,
    EstimateRequest,
    Event,
    LoadRequest,
    Machine,
    ModelBundle,
    Plan,
)

from .sources import describe_source

if TYPE_CHECKING:
    from .options import LoadOptions

__all__ = ["Transformers", "TransformersConfig", "describe_source"]


class TransformersConfig(PluginConfig):
    """How the model is found and loaded, and how answers are batched."""

    revision: str | None = Field(None, description="branch, tag or commit of a model on the hub; none: its default")
    trust_remote_code: bool = Field(False, description="run Python code that the model's repository brings with it")
    allow_pickle: bool = Field(
        False, description="load pickled weights (.bin), which can run code, where there are no safetensors"
    )
    attention: Literal["auto", "sdpa", "eager"] = Field(
        "auto", description="attention implementation; auto: what transformers chooses for the model"
    )
    cache: Path | None = Field(
        None, description="folder for converted GGUF models; none: the user's cache folder for tunekit"
    )
    batch: int = Field(32, ge=1, le=1024, description="prompts that are answered together, at most")


class Transformers(Plugin[TransformersConfig]):
    """Model-load and infer backend on transformers' Auto classes."""

    provides = frozenset({"model.transformers", "backend.transformers"})

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Find out without torch or network whether the model can be loaded at all."""
        from .sources import problems

        return problems(str(plan.recipe.model), self._options())

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Count parameters on the meta device, measure the process."""
        from .estimate import extend

        return extend(request, estimate, self._options())

    @hookimpl
    def tunekit_load_tokenizer(self, request: LoadRequest, context: Context) -> Any:
        """Load the tokenizer, from the GGUF file itself where that is not converted yet."""
        from .loading import find_tokenizer

        def tell(message: str) -> None:
            context.emit(Event(kind="started", stage="load", message=message))

        return find_tokenizer(request.model, self._options(), tell)

    @hookimpl
    def tunekit_load_model(self, request: LoadRequest, context: Context) -> ModelBundle:
        """Load the model, converting a GGUF file the first time it is seen."""
        from .loading import load

        return load(request, self._options(), context.emit)

    @hookimpl
    def tunekit_infer_backend(self, bundle: ModelBundle, context: Context) -> Backend:
        """Answer with `generate`; a saved adapter's own tokenizer and chat template come first."""
        from .backend import open_backend

        return open_backend(bundle, self._options(), self.config.batch)

    def _options(self) -> LoadOptions:
        from .options import LoadOptions

        config = self.config
        return LoadOptions(
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            allow_pickle=config.allow_pickle,
            attention=config.attention,
            cache=config.cache,
        )
