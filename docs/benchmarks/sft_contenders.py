"""The contenders of supervised fine-tuning; `contenders` says how each is run."""

from __future__ import annotations

from typing import Any

from contenders import (
    LIMIT,
    Clock,
    Told,
    Work,
    labelled,
    main,
    opened,
    prepared,
    same_dtype,
    shared,
    tokens_of,
    tunekit,
    with_lora,
)

ROWS, BINS = 4, 2
"""Rows of a micro-batch; bins of 512 tokens where rows are packed, which hold about as many tokens."""


def plain(work: Work) -> Told:
    """A plain `transformers.Trainer`: rows padded to the longest of the batch, labels masked outside the answers."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    model, tokenizer = opened(work)
    batches = prepared(work)
    arguments = TrainingArguments(str(work.folder), bf16=work.bf16, **shared(work))
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100)
    trainer = Trainer(with_lora(model), arguments, data_collator=collator, train_dataset=rows_of(batches))
    return Clock().train(trainer, tokens_of(batches))


def trl(work: Work, **more: Any) -> Told:
    """TRL's SFTTrainer on the same token ids and labels."""
    batches = prepared(work)
    return Clock().train(sft_trainer(work, rows_of(batches), max_length=None, **more), tokens_of(batches))


def trl_padding_free(work: Work) -> Told:
    """The same without padding: the rows of a batch laid end to end."""
    return trl(work, padding_free=True)


def trl_packing(work: Work) -> Told:
    """The same with whole rows packed into bins; a step then holds other rows than ours."""
    trainer = sft_trainer(
        work, rows_of(prepared(work)), packing=True, max_length=LIMIT, per_device_train_batch_size=BINS
    )
    bins = [sum(lengths) for lengths in trainer.train_dataset["seq_lengths"]]
    steps = [sum(bins[at : at + BINS]) for at in range(0, len(bins), BINS)][: work.steps]
    trainer.args.max_steps = len(steps)
    return {**Clock().train(trainer, steps), "same_rows": False}


def sft_trainer(work: Work, rows: list[dict[str, Any]], **more: Any) -> Any:
    """TRL's trainer on rows of token ids and labels."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = opened(work)
    arguments = SFTConfig(str(work.folder), **{**shared(work), **same_dtype(work), **more})
    data = Dataset.from_list(rows)
    return SFTTrainer(with_lora(model), args=arguments, train_dataset=data, processing_class=tokenizer)


def rows_of(batches: list[list[Any]]) -> list[dict[str, Any]]:
    """The rows of all batches, in order."""
    return [labelled(item.sequences[0]) for batch in batches for item in batch]


if __name__ == "__main__":
    main(
        "sft",
        ROWS,
        {
            "tunekit": tunekit,
            "plain": plain,
            "trl": trl,
            "trl_padding_free": trl_padding_free,
            "trl_packing": trl_packing,
        },
    )
