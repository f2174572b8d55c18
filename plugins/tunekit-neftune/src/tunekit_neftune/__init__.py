"""NEFTune: uniform noise on the embeddings while training."""

from __future__ import annotations

from pydantic import Field

from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import ModelBundle, Report

__all__ = ["Neftune", "NeftuneConfig"]


class NeftuneConfig(PluginConfig):
    """The options of NEFTune."""

    alpha: float = Field(5.0, gt=0, description="noise scale; the paper uses 5, 10 and 15")


class Neftune(Plugin[NeftuneConfig]):
    """Noisy embeddings (NEFTune: Noisy Embeddings Improve Instruction Finetuning, arXiv 2310.05914)."""

    provides = frozenset({"embedding.noise"})

    @hookimpl
    def tunekit_patch(self, bundle: ModelBundle) -> Report:
        """Add noise to what the input embedding of this model returns, in training mode only."""
        from .noise import add_noise_

        undo = add_noise_(bundle.model, self.config.alpha)
        summary = f"noise of at most {self.config.alpha:g}/sqrt(length x width) on the embeddings while training"
        return Report(summary, {"alpha": self.config.alpha}, undo)
