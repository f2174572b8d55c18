"""Supervised fine-tuning, where the model learns to answer as the data does, and training on plain documents."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from tunekit.hooks import hookimpl
from tunekit.values import Examples, Kind, Prepared, StageContext
from tunekit_train import Objective, Stage

from .options import PretrainConfig, SftConfig

if TYPE_CHECKING:
    from tunekit_train import Rules


class Sft(Stage[SftConfig]):
    """Supervised fine-tuning on conversations or documents."""

    provides = frozenset({"stage.sft"})

    def objective(self) -> Objective:
        """The loss that `loss` names, over the supervised tokens."""
        from .objective import TokenLoss

        options = self.config
        return TokenLoss(options.loss, options.label_smoothing, options.token_accuracy)

    def rules(self) -> Rules:
        """A loss on the answers that `supervise` names."""
        return replace(super().rules(), supervise=self.config.supervise)


class Pretrain(Stage[PretrainConfig]):
    """Training on documents laid end to end and cut into blocks of one size."""

    kinds: ClassVar[frozenset[Kind]] = frozenset({"text"})
    provides = frozenset({"stage.pretrain"})

    def objective(self) -> Objective:
        """Cross-entropy, with perplexity."""
        from .objective import TokenLoss

        return TokenLoss()

    @hookimpl
    def tunekit_prepare_data(self, data: Examples, tokenizer: Any, context: StageContext) -> Prepared:
        """Encode whole documents, and make blocks of them."""
        from .preparing import prepare_blocks

        options, context = self.config, self.config.seeded(context)
        return prepare_blocks(data, tokenizer, options.block_size, options.cross_documents, self.kinds, context)


__all__ = ["Pretrain", "PretrainConfig", "Sft", "SftConfig"]
