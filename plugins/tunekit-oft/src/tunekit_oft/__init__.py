"""OFT: each adapted layer's inputs are rotated in blocks, which keeps the angles between what its rows look at."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from tunekit.hooks import hookimpl
from tunekit.options import Targets
from tunekit.plugin import PluginConfig
from tunekit.values import Context, Estimate, EstimateRequest, ModelBundle
from tunekit_peft import MethodPlugin, Request

__all__ = ["Oft", "OftConfig"]


class OftConfig(PluginConfig):
    """The options of OFT."""

    targets: Targets = Field(
        "all-linear",
        description="which layers are rotated: all-linear (every linear layer but the head), a list of names, or a "
        "regular expression over the whole names of linear layers",
    )
    block_size: int = Field(
        32,
        ge=2,
        description="inputs that are rotated together; it has to divide the inputs of each layer. Larger learns more",
    )
    share_blocks: bool = Field(False, description="rotate all blocks of a layer alike, with as many fewer parameters")
    exact: bool = Field(
        False, description="invert a matrix for each rotation, instead of the first terms of the Neumann series"
    )
    terms: int = Field(5, ge=1, description="terms of the Neumann series; more are nearer to a rotation")
    limit: float | None = Field(
        None, gt=0, description="how far the rotations may get from the identity (COFT); left out: anywhere"
    )
    modules_to_save: tuple[str, ...] = Field((), description="names of modules trained whole, saved with the adapter")

    @model_validator(mode="after")
    def _every_option_acts(self) -> OftConfig:
        if self.exact and "terms" in self.model_fields_set:
            raise ValueError("terms means nothing with exact, which sums no series; leave one of them out")
        return self


FIELDS = {
    "oft_block_size": "block_size",
    "block_share": "share_blocks",
    "use_cayley_neumann": "exact",
    "num_cayley_neumann_terms": "terms",
    "coft": "limit",
    "eps": "limit",
    "target_modules": "targets",
    "modules_to_save": "modules_to_save",
}
"""What PEFT calls the options."""


class Oft(MethodPlugin[OftConfig]):
    """Orthogonal fine-tuning (OFT, arXiv 2306.07280, on the inputs as in OFTv2, arXiv 2506.19847), through PEFT."""

    @property
    def request(self) -> Request:
        """OFT and its options, by PEFT's names."""
        config = self.config
        options: dict[str, Any] = {
            "oft_block_size": config.block_size,
            "block_share": config.share_blocks,
            "use_cayley_neumann": not config.exact,
            "num_cayley_neumann_terms": config.terms,
            "coft": config.limit is not None,
        }
        if config.limit is not None:
            options["eps"] = config.limit
        given = {name: f"use.oft.{option}" for name, option in FIELDS.items() if option in config.model_fields_set}
        return Request("oft", "oft", config.targets, options, config.modules_to_save, given)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Check that blocks divide the layers, wrap the skeleton, and count what trains."""
        from .blocks import refuse_uneven

        if request.started is None:
            refuse_uneven(estimate.skeleton, self.config)
        counted: Estimate = super().tunekit_estimate(request=request, estimate=estimate)
        return counted

    @hookimpl
    def tunekit_attach_adapter(self, bundle: ModelBundle, context: Context) -> ModelBundle:
        """Put a fresh adapter on the model, or the saved one where the bundle names it, beside any it carries."""
        from .blocks import refuse_uneven

        if bundle.saved_adapter is None:
            refuse_uneven(bundle.model, self.config)
        attached: ModelBundle = super().tunekit_attach_adapter(bundle=bundle, context=context)
        return attached
