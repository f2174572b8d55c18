"""Train a model for an objective: the one function that stages call."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainingArguments
from transformers.utils import logging

from tunekit.errors import DataError, Problem
from tunekit.values import Item, ModelBundle, StageContext, StageResult

from .averaging import average_
from .checkpoints import Checkpoints, read_state
from .compiling import compiled
from .config import LoraProduct, TrainConfig
from .determinism import deterministic
from .fitting import Fitting, as_options_say, checkpointed, chunking_obstacle, without_chunks
from .forward import Strategy, choose_strategy, prepared
from .items import IndexedItems, Items
from .job import Job
from .learnt_prompts import PromptRestorer
from .lowrank import one_product
from .memory import PeakMemory
from .objective import Objective
from .parallel import parallel_of
from .producing import ProducedItems
from .results import evaluation_metrics, save_model, stage_result
from .sources import Sources
from .streaming import StreamedItems
from .surroundings import cast_trainable_, same_trained
from .tally import Tally
from .tracking import tracking
from .trainer import EngineTrainer
from .watchers import GradientGuard, Interrupt, Rhythm, Saver, StepClock, Teller, Verifier

OBJECTIVE = "objective.pt"


def train(
    objective: Objective, items: Iterable[Item], bundle: ModelBundle, config: TrainConfig, context: StageContext
) -> StageResult:
    """Train `bundle.model` on `items` for `objective`, and save what was trained.

    With `context.resume` it goes on from the newest complete checkpoint in the stage's folder and reaches the very
    numbers that an uninterrupted run reaches.

    Raises:
        PlanError: packing for a model that has to be padded, streaming with an option that needs a length.
        DataError: too few items, a streamed row that cannot be used, other data than the interrupted run had.
        DivergedError: a loss or gradient that is no finite number; checkpoints written before stay.
        InterruptedRunError: Ctrl-C, after a checkpoint at the next step border.
    """
    context = config.seeded(context)
    objective = context.calls.chain("tunekit_train_objective", "objective", objective, context=context)
    peak = PeakMemory(context.precision.device)
    cast_trainable_(bundle.model, bundle.precision.trainable)
    resumed = _resume_point(config, context)
    data = items if isinstance(items, IndexedItems | StreamedItems | ProducedItems) else Items(items)
    strategy = _strategy(bundle, config, context, resumed)
    fitting = _fitting(objective, config, context, resumed)
    job = Job(objective, data, bundle, config, context, strategy, fitting)
    job.refuse()
    stop = Interrupt()
    with ExitStack() as stack, _computing(job) as computed:
        sources = Sources(job, resumed)
        trainer = _trainer(job, sources, stop, resumed is not None)
        if job.produced is not None:
            stack.callback(job.produced.close)
            job.produced.start(job, sources, resumed)
        if resumed is not None:
            _take_up_(trainer, resumed)
            trainer.add_callback(PromptRestorer(bundle.model, resumed))
        with closing(trainer), stop.listening(), _ctrl_c(job), tracking(config.log.trackers, context.key):
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    if stop.asked and trainer.state.global_step < job.total_steps:
        raise job.interrupted()
    return _finish(trainer, computed, peak)


@contextmanager
def _computing(job: Job) -> Iterator[dict[str, Any]]:
    """Compute the model as was chosen, and as it was before afterwards; gives what the record keeps of it."""
    model, compute, precision = job.bundle.model, job.config.compute, job.bundle.precision
    with (
        quiet(),
        same_trained(model),
        prepared(model, job.strategy, precision.autocast),
        one_product(model, _lora_product(job), precision, compute.compile) as taken,
        deterministic(compute.deterministic),
        compiled(model, compute) as compilation,
        checkpointed(model, job.fitting.checkpointing),
    ):
        yield {**taken.facts(), **compilation}


def _finish(trainer: EngineTrainer, computed: Mapping[str, Any], peak: PeakMemory) -> StageResult:
    """Save what was trained, gather the result, and tell that the stage is done."""
    job, step = trainer.job, trainer.state.global_step
    job.bundle.model.eval()
    average_(trainer.optimizer)
    trainer.selection.finish_(job.bundle.model, step)
    trainer.accelerator.wait_for_everyone()  # the file is deleted below
    trainer.sources.close()
    with quiet():
        artefact = save_model(job.bundle, job.context.folder, job.parallel)
    shutil.rmtree(job.checkpoints.partial, ignore_errors=True)
    if job.parallel.first:
        trainer.selection.clear_()
    measured = max(job.parallel.gather(peak.read()))
    result = stage_result(job, trainer.state.log_history, trainer.total, measured, artefact)
    facts = {**trainer.sources.facts(), **computed, "data_order": trainer.seen}
    result = _completed(result, trainer, facts)
    job.tell("finished", step, dict(result.metrics))
    return result


def _completed(result: StageResult, trainer: EngineTrainer, more: Mapping[str, Any]) -> StageResult:
    """The result with what the trainer knows: its closing metrics are those of the weights that the stage ends with."""
    job, best_step = trainer.job, trainer.selection.best_step or None
    closing = evaluation_metrics(trainer.state.log_history, best_step)
    metrics = {**result.metrics, "matrix_share": trainer.matrix_share(trainer.total), **closing}
    produced = {} if job.produced is None else job.produced.facts()
    facts = {**result.facts, **more, **trainer.selection.facts(), **produced, "matrix_rate": job.matrix_rate()}
    return replace(result, metrics=metrics, facts=facts)


@contextmanager
def quiet() -> Iterator[None]:
    """Let transformers draw and print nothing: whoever watches the run draws from its events.

    Its warnings in a run are about what is meant so here: a tied head that a checkpoint does not hold twice, say.
    """
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _resume_point(config: TrainConfig, context: StageContext) -> Path | None:
    checkpoints = Checkpoints(context.folder / "checkpoints", config.checkpoint.keep)
    if context.processes.first:
        checkpoints.clear_partial_()
    return checkpoints.newest() if context.resume else None


def _strategy(bundle: ModelBundle, config: TrainConfig, context: StageContext, resumed: Path | None) -> Strategy:
    """Choose how the model is run, or do as the interrupted run did."""
    if resumed is not None:
        return Strategy(**read_state(resumed)["strategy"])
    tokenizer = bundle.tokenizer
    padding_id = next((at for at in (tokenizer.pad_token_id, tokenizer.eos_token_id) if at is not None), 0)
    return choose_strategy(bundle.model, config.batch.padding, padding_id, context.key, config.batch.share_prompts)


def _fitting(objective: Objective, config: TrainConfig, context: StageContext, resumed: Path | None) -> Fitting:
    """What is done to fit in memory: as the plan chose from its estimate, or as the interrupted run did."""
    chosen = read_state(resumed).get("fitting") if resumed is not None else context.choices.get("fitting")
    fitting = as_options_say(config.compute) if chosen is None else Fitting(**chosen)
    why = parallel_of(context).obstacle("chunked_head") or chunking_obstacle(objective.needs)
    return without_chunks(fitting, config.compute, context.key, why)


def _lora_product(job: Job) -> LoraProduct:
    return "never" if job.parallel.obstacle("lora_product") else job.config.compute.lora_product


def _trainer(job: Job, sources: Sources, stop: Interrupt, resumed: bool) -> EngineTrainer:
    held_out = (job.held_out if job.produced is None else range(job.evaluated)) or None
    arguments = _arguments(job, resumed)
    trainer = EngineTrainer(job, sources, stop, model=job.bundle.model, args=arguments, eval_dataset=held_out)
    trainer.remove_callback(PrinterCallback)
    _place_tensorboard(trainer, job.context.folder / "tensorboard")
    for callback in (
        StepClock(trainer.finish_step_),
        GradientGuard(job.diverged, scaled=job.needs_scaler),
        Rhythm(job, stop),
        Teller(job.tell),
        Saver(job, lambda: _state(trainer), lambda folder: _write(trainer, folder)),
        Verifier(job, lambda: trainer.model_wrapped),
        trainer.selection,
        *job.callbacks(),
    ):
        trainer.add_callback(callback)
    return trainer


def _arguments(job: Job, resumed: bool) -> TrainingArguments:
    """What Trainer is to know. When it logs, evaluates and saves is `Rhythm`'s to say."""
    config = job.config
    return TrainingArguments(
        output_dir=str(job.checkpoints.partial),
        per_device_train_batch_size=config.batch.rows,
        gradient_accumulation_steps=config.batch.accumulation // job.parallel.count,
        max_steps=job.total_steps,
        learning_rate=config.learning_rate,
        max_grad_norm=config.max_grad_norm,
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        logging_nan_inf_filter=False,
        restore_callback_states_from_checkpoint=True,
        disable_tqdm=True,
        eval_on_start=config.evaluate.at_start and not resumed,
        metric_for_best_model=config.evaluate.metric,
        greater_is_better=bool(config.evaluate.higher_is_better),
        report_to=list(config.log.trackers) or "none",
        run_name=f"{job.context.folder.parent.name}-{job.context.folder.name}",
        seed=job.context.seed,
        use_cpu=job.bundle.precision.device == "cpu",
        fp16=job.needs_scaler,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        **job.parallel.arguments(job),
    )


def _place_tensorboard(trainer: EngineTrainer, folder: Path) -> None:
    """Its own default is inside Trainer's output folder, where only half-written checkpoints live."""
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__name__ == "TensorBoardCallback" and callback.logging_dir is None:
            callback.logging_dir = str(folder)


def _state(trainer: EngineTrainer) -> dict[str, Any]:
    job = trainer.job
    kept = {
        "strategy": vars(job.strategy),
        "fitting": job.fitting.state(),
        "window": trainer.window.state(),
        "total": trainer.total.state(),
    }
    kept["selection"] = trainer.selection.state()
    stream = None if job.stream is None else job.stream.state(trainer.position)
    return {**kept, "seen": trainer.seen, "data": job.items.fingerprint, "stream": stream}


def _write(trainer: EngineTrainer, checkpoint: Path) -> None:
    """What is no plain data, in files of its own."""
    trainer.sources.save(checkpoint)
    if trainer.job.produced is not None:
        trainer.job.produced.save(checkpoint)
    torch.save(trainer.job.objective.state(), checkpoint / OBJECTIVE)


def _take_up_(trainer: EngineTrainer, checkpoint: Path) -> None:
    trainer.job.objective.load_state(torch.load(checkpoint / OBJECTIVE, weights_only=True))
    state, job = read_state(checkpoint), trainer.job
    if state["data"] and job.items.fingerprint and state["data"] != job.items.fingerprint:
        what = f"is not what {checkpoint.name.replace('-', ' ')} was trained on, and the run cannot reach its numbers"
        remedy = "give it the same data, tokenizer and options, or start a run in another folder"
        raise DataError([Problem(f"{job.context.key}.data", what, remedy)])
    trainer.seen = state["seen"]
    trainer.window, trainer.total = Tally.from_state(state["window"]), Tally.from_state(state["total"])
    trainer.selection.load_state(state["selection"])
    if job.stream is not None:
        trainer.position = job.stream.take_up_(state["stream"])


@contextmanager
def _ctrl_c(job: Job) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        raise job.interrupted() from error
