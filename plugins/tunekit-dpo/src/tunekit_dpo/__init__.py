"""Learning from preferences: DPO and its family, and ORPO, SimPO and CPO, which need no reference policy."""

from __future__ import annotations

from typing import Any

from tunekit.hooks import hookimpl
from tunekit.values import Examples, Prepared, StageContext
from tunekit_train import Objective

from .names import COUPLED, OFFSET
from .options import CpoConfig, DpoConfig, OrpoConfig, SimpoConfig
from .pairwise import Pairwise


class Dpo(Pairwise[DpoConfig]):
    """Direct preference optimisation against the policy at the start of the stage, with any loss of its family."""

    provides = frozenset({"stage.dpo"})

    def objective(self) -> Objective:
        """The weighted sum of the chosen losses."""
        from .comparing import Settings
        from .objective import CoupledPreference, Preference

        options = self.config
        settings = Settings(
            options.beta,
            options.label_smoothing,
            options.divergence,
            options.divergence_alpha,
            options.discopop_temperature,
        )
        kind = Preference if COUPLED.isdisjoint(options.losses) else CoupledPreference
        return kind(
            options.losses,
            settings,
            options.margin_weight,
            options.tail_weight,
            options.sft_weight,
            options.bco_decay,
        )

    @property
    def takes_margins(self) -> bool:
        """Whether one of the losses does."""
        return bool(self.config.margin_weight) and not OFFSET.isdisjoint(self.config.losses)

    @hookimpl
    def tunekit_prepare_data(self, data: Examples, tokenizer: Any, context: StageContext) -> Prepared:
        """Encode the pairs; where `margin_weight` was set, some of them give a margin."""
        from tunekit_train.preparing import with_margins

        prepared = super().tunekit_prepare_data(data, tokenizer, context)
        return with_margins(prepared, self.config.margin_weight, context.key)


class Orpo(Pairwise[OrpoConfig]):
    """Odds ratio preference optimisation: supervised fine-tuning and preference in one loss, without a reference."""

    provides = frozenset({"stage.orpo"})

    def objective(self) -> Objective:
        """The chosen answer's cross-entropy, and the odds ratio of both."""
        from .reference_free import OddsRatio

        return OddsRatio(self.config.beta)


class Simpo(Pairwise[SimpoConfig]):
    """Simple preference optimisation: mean log-probabilities as rewards, with a margin, without a reference."""

    provides = frozenset({"stage.simpo"})

    def objective(self) -> Objective:
        """The sigmoid loss on mean log-probabilities."""
        from .reference_free import Simple

        return Simple(self.config.beta, self.config.sft_weight, self.config.gamma)


class Cpo(Pairwise[CpoConfig]):
    """Contrastive preference optimisation: the sigmoid loss without a reference, and the chosen answer's likelihood."""

    provides = frozenset({"stage.cpo"})

    def objective(self) -> Objective:
        """The sigmoid loss on log-probabilities, and the chosen answer's cross-entropy."""
        from .reference_free import Contrastive

        return Contrastive(self.config.beta, self.config.sft_weight, self.config.label_smoothing)


__all__ = ["Cpo", "CpoConfig", "Dpo", "DpoConfig", "Orpo", "OrpoConfig", "Simpo", "SimpoConfig"]
