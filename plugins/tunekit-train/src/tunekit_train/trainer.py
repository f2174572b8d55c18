"""The thin class that hands our batches, losses and optimisers to `transformers.Trainer`."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader  # type: ignore[import-untyped]
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from .averaging import average_, go_on_
from .checkpoints import remove_inactive_adapters
from .feeding import Drawn, InTurn, StreamedBatches
from .fitting import offloaded
from .job import Job
from .layout import laid_tokens
from .learnt_prompts import save_prompt
from .objective import Batch, Sum, Sums
from .order import extended
from .parallel import Counted, Turns
from .producing import ProducedBatches
from .selection import Selection
from .sources import Sources
from .streaming import Position
from .tally import Tally, measured
from .watchers import Interrupt
from .work import Work


class EngineTrainer(Trainer):
    """Trainer over the batches and the objective of a job. Only public methods are overridden."""

    loss_is_scaled_for_ga = True  # compute_loss divides by the weight of the whole step

    def __init__(self, job: Job, sources: Sources, stop: Interrupt, **arguments: Any) -> None:
        self.job, self.sources, self.parallel = job, sources, job.parallel
        self.stop = stop
        self.step, self.window, self.total = Tally(), Tally(), Tally()
        self.position = Position()
        self.metrics = job.metrics()
        self.work = Work.of(job.bundle.model, sources.frozen.count)
        folder = job.context.folder / "best"
        self.selection = Selection(job.config, job.context.key, folder, self.told)
        self.selection.processes = self.parallel
        self.seen = ""
        self._open = contextlib.ExitStack()
        self._step_started = 0.0
        super().__init__(**arguments)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Our fixed list of batches per epoch, as a batch sampler, so that accelerate skips what is done on resume.

        A stream is one epoch of numbered batches; those that are skipped are never drawn. So is what is produced, for
        which accelerate's loader must not be used: it looks one batch ahead, when the weights are not those yet.
        """
        job, batch = self.job, self.job.config.batch
        if job.produced is not None:
            produced: Any = ProducedBatches(job.produced, batch.accumulation)
            numbers = InTurn(job.total_steps * batch.accumulation, batch.rows)
            return DataLoader(produced, batch_sampler=numbers, collate_fn=_first, generator=torch.Generator())
        if job.stream is None:
            return self._loader(job.training, job.order, _collate)
        batches = self._open.enter_context(contextlib.closing(StreamedBatches(job.stream, job.room, self.position)))
        return self._loader(batches, InTurn(job.total_steps * batch.accumulation, batch.rows), _only)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The held-out items in their own order."""
        return self._loader(self.job.held_out, self.job.evaluation_order, _collate)

    def _loader(self, items: Any, batches: Any, collate: Any) -> DataLoader[Any]:
        own = torch.Generator()  # a loader without one would draw from the generator that dropout uses
        if self.parallel.count > 1:
            items, batches, collate = Counted(items), Turns(batches, self.parallel), partial(_collate_counted, collate)
        loader = DataLoader(items, batch_sampler=batches, collate_fn=collate, generator=own)
        # Each process has its share already; accelerate would count what fills the last turn twice.
        prepared: DataLoader[Any] = prepare_data_loader(loader, num_processes=1, process_index=0)
        return prepared

    def close(self) -> None:
        """Let go of data that is being read."""
        self._open.close()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Fetch the micro-batches of one step, and their total weight before the first backward."""
        go_on_(self.optimizer)
        samples = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        self.position = samples[-1].get("position", self.position)
        counted = [sample["batch"] for sample in samples if sample.get("counts", True)]
        weight = sum(self.job.weight(batch) for batch in counted)
        for batch in counted:
            self.seen = extended(self.seen, batch)
        self._step_started = time.perf_counter()
        return samples, sum(self.parallel.gather(weight))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The micro-batch's share of the step's mean loss."""
        batch: Batch = inputs["batch"]
        sums = self.sums(model, batch)
        if not torch.isfinite(sums.loss):
            raise self.job.diverged("the loss", self.state.global_step + 1)
        if counts := inputs.get("counts", True):
            computed = laid_tokens(batch.items, self.job.strategy.share_prompts)
            self.step.add(batch, self.job.weight(batch), sums, computed)
        # Gradients are averaged over processes, so each contributes its sum times their number.
        loss = sums.loss * (counts * self.parallel.count / (num_items_in_batch or 1.0))
        return (loss, sums) if return_outputs else loss

    def sums(self, model: Any, batch: Batch) -> Sums:
        """Run the model on a batch and the objective on what it needs."""
        provided = self.sources.provide(model, batch, self.args.device)
        return measured(self.metrics, batch, provided, self.job.objective.sums(batch, provided))

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """Autocast here rather than by accelerate, which would wrap the model and copy all its outputs to fp32."""
        stack = super().compute_loss_context_manager()
        stack.enter_context(self.job.autocast())
        if self.job.fitting.offload:
            stack.enter_context(offloaded(self.model))
        return stack

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimiser of whichever plugin owns that hook."""
        if self.optimizer is None:
            self.parallel.cut_(self.model)
            self.optimizer = self.job.make_optimizer(self.model if model is None else model, self.state.max_steps)
            self.parallel.optimized_(self.optimizer)
        return self.optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights that train, whole: of several adapters on the model the active one."""
        average_(self.optimizer)
        with self.parallel.saving(self.model, self.optimizer):
            super().save_model(output_dir, _internal_call)
        if output_dir is not None and self.args.should_save:
            remove_inactive_adapters(self.job.bundle.model, Path(output_dir))
            save_prompt(self.job.bundle.model, Path(output_dir))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of the job, over all groups of the optimiser."""
        if self.lr_scheduler is None:
            self.lr_scheduler = self.job.make_scheduler(optimizer or self.optimizer, num_training_steps)
        return self.lr_scheduler

    def evaluate(self, *arguments: Any, **named: Any) -> dict[str, float]:
        """Evaluate the weights that are to be used, and have them compared."""
        average_(self.optimizer)
        return super().evaluate(*arguments, **named)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The true mean over all held-out items, not a mean of batch means."""
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self._measured(dataloader).items()}
        nothing: Any = None  # predictions and labels are not kept: only sums leave the loop
        return EvalLoopOutput(nothing, nothing, metrics, self.job.evaluated)

    def told(self) -> list[str]:
        """The names of what an evaluation tells, from one batch of it."""
        return list(self._measured(itertools.islice(self.get_eval_dataloader(), 1)))

    def _measured(self, batches: Iterable[Any]) -> dict[str, float]:
        if self.job.produced is not None:
            return self.job.produced.evaluate()
        model, tally = self.model_wrapped, Tally()
        model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            for inputs in batches:
                batch, sums = inputs["batch"], self.sums(model, inputs["batch"])
                if inputs.get("counts", True):
                    tally.add(batch, self.job.weight(batch), sums)
        return self.job.objective.summary(self._over_processes(tally).means)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Replace Trainer's mean of step means by the true mean since the last entry, and tell the run."""
        if "loss" not in logs:
            if "train_loss" not in logs:  # Trainer's own closing summary is left out: ours is the stage's result
                super().log(logs, start_time)
            return
        window, self.window = self.window, Tally()
        self.total.merge(window)
        logs = {**self.job.step_metrics(window, logs), "matrix_share": self.matrix_share(window)}
        self.job.tell("step", self.state.global_step, dict(logs))
        super().log(logs, start_time)

    def matrix_share(self, tally: Tally) -> float:
        """The share of the machine's matrix rate that the products of these steps reach: see `Work`."""
        operations = self.work.operations(tally.computed_tokens, tally.supervised_tokens)
        rate = self.parallel.count * self.job.matrix_rate()
        return operations / tally.seconds / rate if tally.seconds else 0.0

    def finish_step_(self) -> None:
        """Let the objective learn from the step that has just ended, and add its time; evaluation is not included."""
        step, self.step = self._over_processes(self.step), Tally()
        self.job.objective.observe({name: Sum(*value) for name, value in step.metrics.items()})
        self.window.merge(step)
        self.window.seconds += time.perf_counter() - self._step_started
        self.stop.due = any(self.parallel.gather(self.stop.asked))  # in all processes at the same step border

    def create_accelerator_and_postprocess(self) -> None:
        """Have the model prepared as the processes want it."""
        super().create_accelerator_and_postprocess()
        self.parallel.accelerate_(self.accelerator)

    def _over_processes(self, tally: Tally) -> Tally:
        """The sums of all processes, the same in each."""
        parts = [Tally.from_state(state) for state in self.parallel.gather(tally.state())]
        for part in parts[1:]:
            parts[0].merge(part)
        return parts[0]


def _collate_counted(collate: Any, drawn: list[tuple[Any, bool]]) -> dict[str, Any]:
    return {**collate([item for item, _ in drawn]), "counts": drawn[0][1]}


def _collate(items: list[Any]) -> dict[str, Any]:
    return {"batch": Batch(tuple(items))}


def _first(given: list[dict[str, Any]]) -> dict[str, Any]:
    return given[0]


def _only(drawn: list[Drawn]) -> dict[str, Any]:
    return vars(drawn[0])
