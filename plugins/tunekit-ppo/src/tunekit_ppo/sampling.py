"""The policy answers prompts: batched, with a cache of keys and values, from random numbers of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig

from tunekit.values import ModelBundle

from .options import RolloutConfig


@dataclass(frozen=True)
class Said:
    """An answer as tokens, its end token included where it has one, and whether it ended by itself."""

    ids: list[int]
    finish: Literal["end", "length"]


class Sampler:
    """Answers prompts with the model of a bundle as it is; put it into evaluation mode first."""

    def __init__(self, bundle: ModelBundle, options: RolloutConfig) -> None:
        self.bundle, self.options = bundle, options
        tokenizer = bundle.tokenizer
        self.ends = end_tokens(bundle)
        self.padding = next((at for at in (tokenizer.pad_token_id, *sorted(self.ends)) if at is not None), 0)

    def answer(self, prompts: Sequence[Sequence[int]], seed: str) -> list[Said]:
        """Answer all prompts, those of similar length together; answers come in the order of the prompts.

        The same prompts, weights and seed give the same answers, whatever else draws random numbers.
        """
        order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
        answers: dict[int, Said] = {}
        for start in range(0, len(order), self.options.batch):
            chosen = order[start : start + self.options.batch]
            found = self._answer([prompts[at] for at in chosen], f"{seed} batch {start}")
            answers.update(zip(chosen, found, strict=True))
        return [answers[at] for at in range(len(prompts))]

    def _answer(self, prompts: list[Sequence[int]], seed: str) -> list[Said]:
        device = next(self.bundle.model.parameters()).device
        ids, mask = pad_left(prompts, self.padding)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big"))
            whole = self.bundle.model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=self._config()
            )
        return [self._said(row) for row in whole[:, ids.shape[1] :].tolist()]

    def _said(self, row: list[int]) -> Said:
        end = next((at for at, token in enumerate(row) if token in self.ends), None)
        return Said(row, "length") if end is None else Said(row[: end + 1], "end")

    def _config(self) -> Any:
        """Name every setting that `generate` would otherwise take from the model's own sampling defaults."""
        options = self.options
        make: Any = GenerationConfig
        return make(
            max_new_tokens=options.max_new_tokens,
            min_new_tokens=options.min_new_tokens or None,
            max_length=None,
            min_length=0,
            do_sample=True,
            num_beams=1,
            temperature=options.temperature,
            top_k=0,
            top_p=options.top_p,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            use_cache=True,
            pad_token_id=self.padding,
            eos_token_id=sorted(self.ends) or None,
        )


def end_tokens(bundle: ModelBundle) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's, and those of the model's generation config."""
    named: Any = getattr(getattr(bundle.model, "generation_config", None), "eos_token_id", None)
    ids = named if isinstance(named, list | tuple) else [named]
    return frozenset(int(token) for token in [*ids, bundle.tokenizer.eos_token_id] if token is not None)


def pad_left(prompts: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Ids, int64 [batch, seq], and which of them are no padding, int64 [batch, seq]."""
    longest = max(len(ids) for ids in prompts)
    ids = torch.full((len(prompts), longest), padding, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.long)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask
