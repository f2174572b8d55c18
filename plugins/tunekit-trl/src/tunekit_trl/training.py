"""Train a stage with TRL: the one function that both stages call."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset  # type: ignore[import-untyped]
from transformers import PrinterCallback

from tunekit.errors import DataError, Problem
from tunekit.values import ModelBundle, Prepared, StageContext, StageResult
from tunekit_train.averaging import average_
from tunekit_train.checkpoints import read_state
from tunekit_train.determinism import deterministic
from tunekit_train.engine import quiet
from tunekit_train.memory import PeakMemory
from tunekit_train.prompts import Prompts
from tunekit_train.results import COMPARED, save_model
from tunekit_train.surroundings import cast_trainable_
from tunekit_train.tracking import tracking
from tunekit_train.watchers import GradientGuard, Interrupt, Saver

from .arguments import make_arguments
from .callbacks import Rhythm, Teller
from .options import GrpoConfig
from .results import closing_metrics, pictures
from .rewards import Rewards
from .session import Session
from .surroundings import deprecations, head_with_bias, kept, lent, reference
from .tokenizer import Known


def train(plugin: Any, data: Prepared, bundle: ModelBundle, context: StageContext) -> StageResult:
    """Train `bundle.model` on prompts for rewards by TRL's trainer, and save what was trained.

    With `context.resume` it goes on from the newest complete checkpoint in the stage's folder.

    Raises:
        PlanError: several processes.
        DataError: too few prompts, other data than the interrupted run had.
        DivergedError: a loss or gradient that is no finite number; checkpoints written before stay.
        InterruptedRunError: Ctrl-C, after a checkpoint where the next answers would have been generated.
    """
    assert isinstance(data, Prompts), "a stage is given what it has prepared"
    peak, stop = PeakMemory(context.precision.device), Interrupt()
    session = Session(plugin.config, data, bundle, plugin.config.seeded(context))
    session.refuse()
    cast_trainable_(bundle.model, bundle.precision.trainable)
    resumed = _resume_point(session)
    with ExitStack() as stack:
        stack.enter_context(quiet())
        stack.enter_context(deprecations())
        stack.enter_context(deterministic(plugin.config.compute.deterministic))
        stack.enter_context(lent(bundle.model))
        stack.enter_context(head_with_bias(bundle.model))
        copied = stack.enter_context(reference(bundle, plugin.config.beta, context.folder / "reference"))
        trainer = _trainer(session, stop, resumed is not None)
        with stop.listening(), _ctrl_c(session), tracking(plugin.config.log.trackers, context.key):
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    if trainer.state.global_step < session.total_steps:
        raise session.interrupted()
    bundle.model.eval()
    average_(trainer.optimizer)
    with quiet():
        artefact = save_model(bundle, context.folder, session.parallel)
    shutil.rmtree(session.checkpoints.partial, ignore_errors=True)
    history = trainer.state.log_history
    metrics = {**closing_metrics(history), "peak_memory_bytes": float(peak.read())}
    left = (artefact, *pictures(history, context.folder))
    result = StageResult(bundle, metrics, _facts(session, copied), left, tuple(session.held_out[:COMPARED]))
    session.tell("finished", trainer.state.global_step, metrics)
    return result


def _resume_point(session: Session) -> Path | None:
    """The newest checkpoint, where the data is still that which it was trained on."""
    checkpoints, context = session.checkpoints, session.context
    checkpoints.clear_partial_()
    newest = checkpoints.newest() if context.resume else None
    if newest is not None and read_state(newest)["data"] != session.data.fingerprint:
        what = f"is not what {newest.name.replace('-', ' ')} was trained on, and the run cannot reach its numbers"
        remedy = "give it the same data, tokenizer and options, or start a run in another folder"
        raise DataError([Problem(f"{context.key}.data", what, remedy)])
    return newest


def _trainer(session: Session, stop: Interrupt, resumed: bool) -> Any:
    """TRL's trainer on this stage's model, prompts and rewards; the model's tokenizer is left as it is."""
    from .trainer import TunedGrpo, TunedRloo

    known = Known(session.data, session.bundle.tokenizer)
    rewards = Rewards(session.data, known.tokenizer, session.config.max_completion_length, session.context)
    make: Any = TunedGrpo if isinstance(session.config, GrpoConfig) else TunedRloo
    with kept(session.bundle):
        trainer = make(
            session=session,
            model=session.bundle.model,
            reward_funcs=rewards.functions,
            args=make_arguments(session, rewards.names, resumed),
            train_dataset=_rows(known, session.order),
            eval_dataset=_rows(known, session.held_out) if session.held_out else None,
            processing_class=known.tokenizer,
        )
    rewards.ends = frozenset({*trainer.eos_token_ids, known.tokenizer.pad_token_id})
    trainer.remove_callback(PrinterCallback)
    _place_tensorboard(trainer, session.context.folder / "tensorboard")
    state = {"data": session.data.fingerprint}
    for callback in (
        GradientGuard(session.diverged, scaled=trainer.args.fp16),
        Rhythm(session, stop),
        Teller(session),
        Saver(session, lambda: state, lambda folder: None),  # type: ignore[arg-type]  # it has what Saver asks
        *session.callbacks(),
    ):
        trainer.add_callback(callback)
    return trainer


def _place_tensorboard(trainer: Any, folder: Path) -> None:
    """Its own default is inside Trainer's output folder, where only half-written checkpoints live."""
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__name__ == "TensorBoardCallback" and callback.logging_dir is None:
            callback.logging_dir = str(folder)


def _rows(known: Known, order: Sequence[int]) -> Dataset:
    """The prompts in an order, each with its number."""
    return Dataset.from_list([{"prompt": known.texts[at], "at": at} for at in order])


def _facts(session: Session, copied: str) -> dict[str, Any]:
    """What the record keeps about how it was trained."""
    config = session.config
    return {
        "trainer": f"TRL {version('trl')}",
        "reference": copied,
        "steps": session.total_steps,
        "steps_per_epoch": session.steps_per_epoch,
        "prompts_trained_on": len(session.data) - len(session.held_out),
        "prompts_held_out": len(session.held_out),
        "prompts_per_generation": session.group,
        "answers_per_prompt": config.num_generations,
    }


@contextmanager
def _ctrl_c(session: Session) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        raise session.interrupted() from error
