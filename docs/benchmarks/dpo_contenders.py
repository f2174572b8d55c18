"""The contenders of direct preference optimisation; `contenders` says how each is run."""

from __future__ import annotations

from typing import Any

from contenders import (
    Clock,
    Told,
    Work,
    main,
    opened,
    parted,
    prepared,
    same_dtype,
    shared,
    tokens_of,
    tunekit,
    with_lora,
)

PAIRS = 2
"""Pairs of a micro-batch."""
TEXT = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
"""What TRL's trainer is made with. It tokenises what it is given, so token ids take the place of this afterwards."""


def trl(work: Work) -> Told:
    """TRL's DPOTrainer on the same token ids; its reference is the model without its adapter, as ours is."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = opened(work)
    batches = prepared(work)
    arguments = DPOConfig(str(work.folder), max_length=None, beta=0.1, **{**shared(work), **same_dtype(work)})
    text = Dataset.from_list(TEXT)
    trainer = DPOTrainer(with_lora(model), args=arguments, train_dataset=text, processing_class=tokenizer)
    trainer.train_dataset = Dataset.from_list([pair(item) for batch in batches for item in batch])
    return Clock().train(trainer, tokens_of(batches))


def pair(item: Any) -> dict[str, list[int]]:
    """An item as TRL's trainer holds it."""
    (prompt, chosen), (same, rejected) = map(parted, item.sequences)
    assert prompt == same, "both answers follow one prompt"
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}


if __name__ == "__main__":
    main("dpo", PAIRS, {"tunekit": tunekit, "trl": trl}, short=True)
