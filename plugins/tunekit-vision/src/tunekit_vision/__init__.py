"""Vision-language models: loaded with what reads their images, trained in chosen parts, and asked about images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
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
    Report,
)
from tunekit_transformers import Transformers, TransformersConfig
from tunekit_transformers.options import LoadOptions

__all__ = ["Part", "Vision", "VisionConfig"]

Part = Literal["tower", "projector", "language"]


class VisionConfig(TransformersConfig):
    """How the model is found and loaded, as for text, and which of its parts stay as they are."""

    freeze: tuple[Part, ...] = Field(
        ("tower",),
        description="parts that do not train: the tower that sees, the projector from it to the language model, the "
        "language model; empty: all may train. With lora, the linear layers of all other parts get an update",
    )


class Vision(Transformers):
    """Model-load and infer backend for models that read images and text, and write text."""

    config: VisionConfig
    provides = frozenset({"model.transformers", "model.vision", "backend.transformers"})
    conflicts = frozenset({"weights.freeze", "weights.full"})

    @property
    def dense(self) -> tuple[str, ...]:
        """What a quantiser is to leave as it is: only the language model is made to be rounded."""
        from .parts import patterns

        return patterns()

    @classmethod
    def config_type(cls) -> Any:
        """The class of its options, which are those of the loader for text and more."""
        return VisionConfig

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Find out whether the model can be loaded, and refuse stages and options that know text alone."""
        from tunekit_transformers.sources import under

        from .checks import problems

        yield from (under(problem, "vision") for problem in super().tunekit_check(plan, machine))
        yield from problems(self.config, plan)

    @hookimpl
    def tunekit_load_tokenizer(self, request: LoadRequest, context: Context) -> Any:
        """Load the processor, and give its tokenizer, which carries what reads the images."""
        from .loading import find_tokenizer

        def tell(message: str) -> None:
            context.emit(Event(kind="started", stage="load", message=message))

        return find_tokenizer(request.model, self._options(), tell)

    @hookimpl
    def tunekit_patch(self, bundle: ModelBundle) -> Report:
        """Keep the chosen parts as they are."""
        from .parts import freeze_

        return freeze_(bundle.model, self.config.freeze)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Count parameters on the meta device, those of the parts that train apart."""
        from .parts import estimate_parts, refuse_rounding

        found = super().tunekit_estimate(request, estimate)
        for planned in request.plan.plugins:
            if "quantization" in planned.plugin.provides:
                refuse_rounding(found.skeleton, planned.name, getattr(planned.plugin.config, "skip", ()))
        return estimate_parts(self.config.freeze, request, found)

    @hookimpl
    def tunekit_infer_backend(self, bundle: ModelBundle, context: Context) -> Backend:
        """Answer with `generate`, about images too."""
        from .backend import open_backend

        return open_backend(bundle, self._options(), self.config.batch)

    def _options(self) -> LoadOptions:
        return replace(super()._options(), auto_class="AutoModelForImageTextToText")
