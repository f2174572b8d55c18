"""Load causal language models with transformers, estimate what they need, and answer with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

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
from .stored import stored_quantization

if TYPE_CHECKING:
    from .options import LoadOptions

__all__ = ["Transformers", "TransformersConfig", "describe_source", "stored_quantization"]


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
    update: bool = Field(
        False,
        description="ask the hub for a newer version of a model that is here whole; else the network is left alone",
    )
    device_map: Literal["one", "auto", "balanced", "sequential"] = Field(
        "one",
        description="one device for the whole model, or how accelerate spreads it over all of them, to answer with",
    )
    max_memory: Mapping[int | str, str] = Field(
        {}, description="how much each device may hold when the model is spread, such as {0: 20GiB, cpu: 60GiB}"
    )
    cache: Path | None = Field(
        None, description="folder for converted GGUF models; none: the user's cache folder for tunekit"
    )
    leave_out: tuple[str, ...] = Field(
        (),
        description="weights of the checkpoint that the model has no place for and may do without, as patterns such as "
        "mtp.*; any others are an error",
    )
    batch: int = Field(32, ge=1, le=1024, description="prompts that are answered together, at most")

    @model_validator(mode="after")
    def _go_together(self) -> TransformersConfig:
        if self.max_memory and self.device_map == "one":
            raise ValueError("max_memory acts only where device_map spreads the model; name one that does")
        return self


class Transformers(Plugin[TransformersConfig]):
    """Model-load and infer backend on transformers' Auto classes."""

    provides = frozenset({"model.transformers", "backend.transformers"})

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Find out without torch or network whether the model can be loaded at all."""
        from .sources import problems, revision_problems
        from .stored import classifier_problems, stored_problems, stored_quantization

        model, stored = plan.recipe.model, stored_quantization(plan.load_request)
        yield from problems(model, self._options())
        yield from revision_problems(model, self.config.revision)
        yield from classifier_problems(plan.load_request)
        yield from stored_problems(stored, plan)
        yield from self._spread(plan)

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

    def _spread(self, plan: Plan) -> Iterable[Problem]:
        """Training computes on one device: what is spread is for answers."""
        if self.config.device_map != "one" and plan.stages:
            what = f"is {self.config.device_map}, and training computes on one device"
            yield Problem(
                "use.transformers.device_map",
                what,
                "leave it out, or train in several processes: `ddp`, `fsdp2`, `zero`",
            )
        if self.config.device_map != "one" and plan.precision.device == "cpu":
            what = f"is {self.config.device_map}, and the model is to be on the CPU, which is one device"
            yield Problem("use.transformers.device_map", what, "leave it out")

    def _options(self) -> LoadOptions:
        from .options import LoadOptions

        config = self.config
        return LoadOptions(
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            allow_pickle=config.allow_pickle,
            attention=config.attention,
            update=config.update,
            device_map=config.device_map,
            max_memory=config.max_memory,
            cache=config.cache,
            leave_out=config.leave_out,
        )
