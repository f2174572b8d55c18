"""What a stage leaves behind: the trained weights, the picture of the loss, metrics and facts."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunekit.values import Artefact, ModelBundle, StageResult, trained_parts

from .encoding.pictures import image_reader
from .forward import base_model
from .heads import head_of, saved_head, without_head
from .items import IndexedItems
from .job import Job
from .parallel import TRICKS, Parallel
from .picture import draw_loss
from .tally import Tally

TIMED = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
COMPARED = 256
"""Held-out items that the record names, at most, for exports to be compared on."""
History = list[dict[str, float]]


def save_model(bundle: ModelBundle, folder: Path, parallel: Parallel) -> Artefact:
    """Save the adapter, or the whole model where there is none, with tokenizer and chat template: one process does.

    As the plugin that attached the adapter says in `bundle.save`, else in the format of the model's `save_pretrained`.
    Written beside and renamed, so that a folder of that name is always whole.
    """
    whole = bundle.save is None and bundle.model is base_model(bundle.model)
    kind = "model" if whole else "adapter"
    final = folder / kind
    with parallel.whole(bundle.model):
        if parallel.first:
            _save_whole(bundle, final)
    parallel.wait()
    return Artefact(kind, final)  # type: ignore[arg-type]


def _save_whole(bundle: ModelBundle, final: Path) -> None:
    partial = final.with_name(f".partial-{final.name}")
    for path in (final, partial):
        shutil.rmtree(path, ignore_errors=True)
    with without_head(bundle.model):
        if bundle.save is not None:
            bundle.save(bundle.model, partial)
        else:
            bundle.model.save_pretrained(str(partial))
    # A stage that does not use the head leaves it as it is; after a resume it is in the folder only.
    head = head_of(bundle.model) or saved_head(bundle.source if final.name == "model" else bundle.saved_adapter)
    if head is not None:
        head.save(partial)
    bundle.tokenizer.save_pretrained(str(partial))
    if (reader := image_reader(bundle.tokenizer)) is not None:
        reader.save(partial)
    partial.rename(final)


def stage_result(job: Job, history: History, total: Tally, peak_bytes: int, artefact: Artefact) -> StageResult:
    """Gather the result from Trainer's log history, which a resumed run has whole."""
    steps = [entry for entry in history if "loss" in entry]
    evaluations = [entry for entry in history if any(name.startswith("eval_") for name in entry)]
    metrics = {
        "train_loss_first": steps[0]["loss"],
        "train_loss_last": steps[-1]["loss"],
        **evaluation_metrics(history),
        "tokens_per_second": total.tokens_per_second,
        "supervised_tokens_per_second": total.supervised_tokens_per_second,
        "peak_memory_bytes": float(peak_bytes),
    }
    picture = job.context.folder / "loss.png"
    if job.parallel.first:
        draw_loss(_points(steps, "loss"), _points(evaluations, "eval_loss"), picture)
    artefacts = (artefact, Artefact("picture", picture))
    return StageResult(job.bundle, metrics, facts(job, total), artefacts, job.held_out_numbers[:COMPARED])


def facts(job: Job, total: Tally) -> Mapping[str, Any]:
    """What the record keeps about how it was trained."""
    return {
        "processes": job.parallel.count,
        "parallel": job.parallel.name,
        "parallel_without": {trick: why for trick in TRICKS if (why := job.parallel.obstacle(trick)) is not None},
        "strategy": job.strategy.name,
        "strategy_reason": job.strategy.reason,
        "share_prompts": job.strategy.share_prompts,
        "share_prompts_reason": job.strategy.sharing_reason,
        **job.fitting.facts(),
        "couples_batch": job.objective.couples_batch,
        "trained": [asdict(part) for part in trained_parts(job.bundle.model)],
        "steps": job.total_steps,
        "steps_per_epoch": job.steps_per_epoch,
        "items_trained_on": len(job.training) if isinstance(job.items, IndexedItems) else None,
        "items_held_out": job.evaluated,
        "micro_batches": total.batches,
        "tokens": total.tokens,
        "supervised_share": total.supervised_tokens / total.tokens,
        "packing": job.config.batch.packing,
        "packing_efficiency": _packing_efficiency(job, total),
    }


def _packing_efficiency(job: Job, total: Tally) -> float | None:
    """Tokens per place in the bins; None where each item has a bin of its own."""
    size = job.bin_size
    if not size:
        return None
    if job.stream is None:
        return job.bins.efficiency(job.training.lengths, size)
    return total.tokens / (total.batches * job.config.batch.rows * size)


def evaluation_metrics(history: History, step: int | None = None) -> dict[str, float]:
    """What the last evaluation, or that of a step, told of the model; how long it took is left out."""
    evaluations = [entry for entry in history if "eval_loss" in entry and step in (None, entry["step"])]
    if not evaluations:
        return {}
    told = {name: value for name, value in evaluations[-1].items() if name.startswith("eval_") and name not in TIMED}
    return {"perplexity" if name == "eval_perplexity" else name: value for name, value in told.items()}


def _points(entries: History, name: str) -> list[tuple[int, float]]:
    return [(int(entry["step"]), entry[name]) for entry in entries if name in entry]
