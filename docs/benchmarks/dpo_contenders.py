"""The contenders of direct preference optimisation; `contenders` says how each is run."""

from __future__ import annotations

from typing import Any

from contenders import Told, Work, main, parted, trained_by, tunekit

PAIRS = 2
"""Pairs of a micro-batch."""
TEXT = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
"""What TRL's trainer is made with. It tokenises what it is given, so token ids take the place of this afterwards."""


def trl(work: Work) -> Told:
    """TRL's DPOTrainer on the same token ids; its reference is the model without its adapter, as ours is."""
    from trl import DPOConfig, DPOTrainer

    return trained_by(DPOTrainer, DPOConfig, TEXT, pair, work)


def pair(item: Any) -> dict[str, list[int]]:
    """An item as TRL's trainer holds it."""
    (prompt, chosen), (same, rejected) = map(parted, item.sequences)
    assert prompt == same, "both answers follow one prompt"
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}


if __name__ == "__main__":
    main("dpo", PAIRS, {"tunekit": tunekit, "trl": trl}, short=True)
