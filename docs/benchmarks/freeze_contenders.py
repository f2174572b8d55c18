"""The contenders of freeze tuning; `contenders` says how each is run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import contenders
from contenders import Clock, Told, Work, labelled, main, opened, prepared, shared, tokens_of

ROWS, LAYERS, EPOCHS = 4, 2, 3
"""Rows of a micro-batch, last layers that train, passes over the rows."""


def first_rows(work: Work) -> dict[str, Any]:
    """As many rows as the steps of one epoch hold."""
    return {"path": work.data, "limit": ROWS * work.steps}


def tunekit(work: Work) -> Told:
    """Our own, through the front door."""
    use = {"freeze": {"layers": LAYERS}}
    return contenders.tunekit(work, use=use, data=first_rows(work), steps=None, epochs=EPOCHS)


def plain(work: Work) -> Told:
    """A plain `transformers.Trainer` on a model all of whose other weights are frozen."""
    import torch
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    model, tokenizer = opened(work)
    model.requires_grad_(False)
    for layer in model.model.layers[-LAYERS:]:
        layer.to(torch.float32).requires_grad_(True)
    batches = prepared(work, data=first_rows(work), epochs=EPOCHS)
    arguments = TrainingArguments(str(work.folder), bf16=work.bf16, **shared(replace(work, steps=len(batches))))
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100)
    rows = [labelled(item.sequences[0]) for batch in batches for item in batch]
    trainer = Trainer(model, arguments, data_collator=collator, train_dataset=rows)
    told = Clock().train(trainer, tokens_of(batches))
    trainer.save_model(str(work.folder / "saved"))
    return told


if __name__ == "__main__":
    main("sft", ROWS, {"tunekit": tunekit, "plain": plain})
