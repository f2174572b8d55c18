"""The contenders of KTO; `contenders` says how each is run."""

from __future__ import annotations

from typing import Any

from contenders import Told, Work, main, parted, trained_by, tunekit

ROWS = 4
"""Answers of a micro-batch, each with a mismatched one."""
TEXT = [{"prompt": text, "completion": text, "label": bool(at % 2)} for at, text in enumerate("abcd")]
"""What TRL's trainer is made with. It tokenises what it is given, so token ids take the place of this afterwards."""


def trl(work: Work) -> Told:
    """TRL's KTOTrainer on the same token ids; its reference is the model without its adapter, as ours is."""
    from trl import KTOConfig, KTOTrainer

    return trained_by(KTOTrainer, KTOConfig, TEXT, answer, work)


def answer(item: Any) -> dict[str, Any]:
    """An item as TRL's trainer holds it."""
    (prompt, completion), (same, mismatched) = map(parted, item.sequences)
    assert prompt == same, "both answers follow one prompt"
    found = {"prompt_ids": prompt, "completion_ids": completion, "KL_completion_ids": mismatched}
    return {**found, "label": bool(item.label)}


if __name__ == "__main__":
    main("kto", ROWS, {"tunekit": tunekit, "trl": trl}, short=True)
