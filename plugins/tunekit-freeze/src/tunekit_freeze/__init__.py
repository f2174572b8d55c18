"""Which of the model's own weights train: the last layers, the first, inserted ones, or all."""

from __future__ import annotations

from functools import partial

from pydantic import Field, model_validator

from tunekit.hooks import hookimpl
from tunekit.options import Modules
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Context, Estimate, EstimateRequest, ModelBundle

__all__ = ["Freeze", "FreezeConfig", "Full", "FullConfig"]


class FreezeConfig(PluginConfig):
    """The options of freezing."""

    layers: int = Field(2, description="how many layers train: n the last n, -n the first n, 0 none")
    modules: Modules = Field(
        "all",
        description="what trains inside these layers: all, a list of names, or a regular expression over whole names, "
        "both as they are called inside a layer (self_attn.q_proj)",
    )
    extra: tuple[str, ...] = Field(
        (), description="modules outside the layers that train as well: the last norm, the embedding, the head"
    )
    expand: int = Field(
        0, ge=0, description="insert so many copies of layers, evenly spread, that change nothing at first; these train"
    )

    @model_validator(mode="after")
    def _something_trains(self) -> FreezeConfig:
        if self.expand and "layers" in self.model_fields_set:
            raise ValueError("layers means nothing with expand, where the inserted layers train; leave one of them out")
        if not self.layers and not self.expand:
            if not self.extra:
                raise ValueError("layers is 0 and extra is empty, so nothing would train; name what trains")
            if self.modules != "all":
                raise ValueError("modules means nothing where layers is 0; leave it out")
        return self


class Freeze(Plugin[FreezeConfig]):
    """Train some layers and freeze the rest, or train layers inserted between them (LLaMA Pro, arXiv 2401.02415)."""

    provides = frozenset({"weights", "weights.freeze", "adapter.saved"})
    conflicts = frozenset({"quantization"})

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Freeze the skeleton as the run will freeze the model, and count what trains."""
        from .choosing import choose_weights
        from .weights import estimate_weights

        return estimate_weights(partial(choose_weights, config=self.config), request, estimate)

    @hookimpl
    def tunekit_attach_adapter(self, bundle: ModelBundle, context: Context) -> ModelBundle:
        """Freeze all but what was chosen; saved weights, where the bundle names them, take the place of the base's."""
        from .choosing import choose_weights
        from .weights import load_weights_, save_weights, train_only_

        names = choose_weights(bundle.model, self.config, probe=True)
        train_only_(bundle.model, names, bundle.precision.trainable)
        if bundle.saved_adapter is not None:
            load_weights_(bundle.model, names, bundle.saved_adapter)
        return bundle.with_model(bundle.model, adapter="freeze", save=partial(save_weights, names=names))


class FullConfig(PluginConfig):
    """The options of training the whole model."""

    freeze_embeddings: bool = Field(
        False, description="leave the input embedding as it is, and with it a head that is the same matrix"
    )
    train: Modules = Field(
        "all", description="what trains: all, a list of module names, or a regular expression over whole names"
    )


class Full(Plugin[FullConfig]):
    """Train all weights of the model, said in so many words."""

    provides = frozenset({"weights", "weights.full"})
    conflicts = frozenset({"quantization"})

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Count what trains, in the dtype it trains in."""
        from .choosing import choose_of_all
        from .weights import estimate_weights

        return estimate_weights(partial(choose_of_all, config=self.config), request, estimate)

    @hookimpl
    def tunekit_attach_adapter(self, bundle: ModelBundle, context: Context) -> ModelBundle:
        """Let train what was chosen. The result is saved as a whole model, so there is nothing to load again."""
        from .choosing import choose_of_all
        from .weights import train_only_

        train_only_(bundle.model, choose_of_all(bundle.model, self.config), bundle.precision.trainable)
        return bundle.with_model(bundle.model, adapter="full")
