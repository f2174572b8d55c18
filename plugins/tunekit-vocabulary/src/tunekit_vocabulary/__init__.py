"""New tokens, and an embedding that holds all tokens: more rows, each begun from what the model knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Context, Estimate, EstimateRequest, Machine, ModelBundle, Plan, Report

__all__ = ["Vocabulary", "VocabularyConfig"]

NOISE = 0.02
"""The `initializer_range` of most families: what their own rows began with."""


class VocabularyConfig(PluginConfig):
    """The options of a larger vocabulary."""

    special_tokens: tuple[str, ...] | Mapping[str, str] = Field(
        (),
        description="new special tokens, which templates write and which no message can forge: a list, or what each "
        "means in words",
    )
    tokens: tuple[str, ...] | Mapping[str, str] = Field(
        (), description="new ordinary tokens, which each stand for their text wherever it occurs: a list, or in words"
    )
    start: Literal["noise", "mean", "description"] = Field(
        "noise",
        description="what a new row begins as: the mean of the old rows and noise, that mean alone, or the mean of the "
        "rows of the words that describe the token",
    )
    noise: float | None = Field(
        None, ge=0, description="standard deviation of the noise; unset: 0.02, and none where start is description"
    )
    multiple: int = Field(64, ge=1, description="an embedding that grows gets a multiple of so many rows")
    train: bool = Field(True, description="train the rows of new tokens, also where the rest of the embedding does not")
    seed: int = Field(0, ge=0, description="seed of the noise; the rows follow from it each time the base is loaded")

    @property
    def deviation(self) -> float:
        """The standard deviation of the noise in use."""
        if self.noise is not None:
            return self.noise
        return NOISE if self.start == "noise" else 0.0

    @property
    def named(self) -> tuple[str, ...]:
        """All new tokens, the special ones first."""
        return (*self.special_tokens, *self.tokens)

    @property
    def descriptions(self) -> dict[str, str]:
        """What the new tokens mean, as far as it is said."""
        return {
            k: v for words in (self.special_tokens, self.tokens) if isinstance(words, Mapping) for k, v in words.items()
        }

    @model_validator(mode="after")
    def _go_together(self) -> VocabularyConfig:
        found = next(self._mistakes(), None)
        if found is not None:
            raise ValueError(found)
        return self

    def _mistakes(self) -> Iterator[str]:
        for token in self.named:
            if not token.strip() or token != token.strip():
                yield f"{token!r} is no token: it is empty, or has blanks around it"
            if self.named.count(token) > 1:
                yield f"{token!r} is named twice; name it once, as a special token or as an ordinary one"
        if self.start == "mean" and self.noise is not None:
            yield "noise acts only where start is noise or description; leave it out, or choose one of these"
        missing = [token for token in self.named if not self.descriptions.get(token, "").strip()]
        if self.start == "description" and missing:
            yield f"start is description, and {missing[0]!r} has none; write `{missing[0]}: what it means`"
        if self.start == "description" and not self.named:
            yield "start is description, and there is no new token to describe; name one, or choose another start"
        if self.start != "description" and self.descriptions:
            yield f"descriptions act only where start is description, and it is {self.start}; leave one of them out"


class Vocabulary(Plugin[VocabularyConfig]):
    """New tokens, and embeddings that grow with the tokenizer."""

    provides = frozenset({"vocabulary"})

    @property
    def base(self) -> dict[str, Any]:
        """The new tokens in the order of their ids, and what their rows begin as."""
        config = self.config
        if not config.named:
            return {}
        tokens = {"special_tokens": config.special_tokens, "tokens": config.tokens}
        ordered = {k: [*(v.items() if isinstance(v, Mapping) else v)] for k, v in tokens.items() if v}
        drawn = {"noise": config.deviation, "seed": config.seed} if config.deviation else {}
        return {**ordered, "start": config.start, **drawn}

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse to leave new rows untrained where they are to train."""
        from .checks import problems

        return problems(self.config, plan)

    @hookimpl
    def tunekit_patch_tokenizer(self, tokenizer: Any, context: Context) -> Report:
        """Add the tokens that it does not know."""
        from .adding import add_

        return add_(tokenizer, self.config)

    @hookimpl
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Let the skeleton grow as the model will."""
        from .rows import estimate_rows
        from .training import refuse_other_rows

        grown = estimate_rows(self.config, estimate)
        if request.started is not None:
            refuse_other_rows(self.config.train, request.started, grown.skeleton)
        return grown

    @hookimpl
    def tunekit_patch(self, bundle: ModelBundle) -> Report:
        """Give each token a row in the embedding, and in the head."""
        from .rows import grow_

        return grow_(bundle.model, bundle.tokenizer, self.config)

    @hookimpl(optionalhook=True)
    def tunekit_lora_config(self, config: Any, model: Any) -> Any:
        """Train the new rows with the low-rank adapter, which also keeps them."""
        from .training import train_rows

        return train_rows(config, model) if self.config.train else config
