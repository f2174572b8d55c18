"""A model to talk to, and a finished run with its record and its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from .adapters import NamedAdapters
from .calls import Calls, implements
from .data import RecordedData
from .errors import PlanError, Problem, RecipeError, TunekitError
from .exporting import Export, make_export
from .plan import plan_one_export
from .plugin import Plugin
from .recipe import exports_from_code
from .record import Record
from .values import Answer, Backend, Context, GenerationSettings, Message, ModelBundle, Plan, Prompt

Opened = NamedAdapters | Callable[[], NamedAdapters]


class Talk:
    """A loaded model that answers."""

    def __init__(self, adapters: Opened, context: Context, name: str | None) -> None:
        """Talk to the model with the adapter of this name, which is active; with None to the base alone.

        A function in place of the adapters opens them when they are first needed.
        """
        self._context, self._name = context, name
        self._backend: Backend | None = None
        self._open = adapters if callable(adapters) else None
        if isinstance(adapters, NamedAdapters):
            self._adapters, self.bundle = adapters, adapters.bundle

    @cached_property
    def _adapters(self) -> NamedAdapters:
        assert self._open is not None, "adapters that were given need not be opened"
        return self._open()

    @cached_property
    def bundle(self) -> ModelBundle:
        """The model with all that belongs to it, with this adapter."""
        return self._adapters.bundle

    @property
    def backend(self) -> Backend:
        """What answers; made at first use."""
        if self._backend is None:
            self._backend = self._context.calls.own("tunekit_infer_backend", bundle=self.bundle, context=self._context)
        assert self._backend is not None
        return self._backend

    def chat(self, prompt: str | Sequence[Message], **settings: Any) -> str:
        """Answer one question or conversation. `settings` are those of GenerationSettings."""
        return self.ask([prompt], **settings)[0].text

    def ask(self, prompts: Sequence[str | Sequence[Message]], **settings: Any) -> list[Answer]:
        """Answer many questions or conversations in one batch, in their order."""
        with self._answering():
            return self.backend.generate([as_conversation(each) for each in prompts], GenerationSettings(**settings))

    def stream(self, prompt: str | Sequence[Message], **settings: Any) -> Iterator[str]:
        """Answer piece by piece."""
        with self._answering():
            yield from self.backend.stream(as_conversation(prompt), GenerationSettings(**settings))

    def perplexity(self, texts: Sequence[str]) -> float:
        """Perplexity over all predicted tokens of the texts: exp of the mean negative log-likelihood per token."""
        with self._answering():
            scores = self.backend.score(texts)
        return math.exp(-sum(score.log_likelihood for score in scores) / sum(score.tokens for score in scores))

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Have the model compute with this adapter for a while: others may have been switched to since.

        Raises TunekitError where the base is not the one that it was.
        """
        if self._adapters.bundle.source != self.bundle.source:
            now = self._adapters.bundle.source
            raise TunekitError(
                f"{self._name} stands on {self.bundle.source}, and the base is {now} now", "open it anew"
            )
        with self._adapters.using(self._name, self.bundle.saved_adapter):
            yield


class Run(Talk):
    """What a run left: `record`, `metrics`, `adapter`, and the trained model to talk to."""

    def __init__(self, plan: Plan, record: Record, adapters: Opened, context: Context) -> None:
        super().__init__(adapters, context, plan.final_adapter if callable(adapters) else adapters.active)
        self.plan = plan
        self.record = record

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.record.state['status']})"

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.record.folder

    @property
    def adapter(self) -> Path | None:
        """The folder of the adapter the run is about, in PEFT's format; None where whole weights were trained."""
        return self.adapters.get(self.plan.final_adapter)

    @property
    def adapters(self) -> dict[str, Path]:
        """The folders of all adapters that the stages have trained, by their names; `default` where they gave none."""
        return self.record.adapters

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """All metric lines of the run, oldest first."""
        return self.record.metrics

    @property
    def data(self) -> RecordedData:
        """What became of every row of the data, stage by stage, as tables."""
        configs = {self.plan.title(stage.index): stage.plugin.plugin.config for stage in self.plan.stages}
        return RecordedData(self.record.accounts, configs)

    @property
    def results(self) -> dict[str, dict[str, float]]:
        """The closing metrics of each stage by its name, `sft`; where several have it, by `sft-1`, `sft-2`."""
        return {self.plan.title(stage["index"]): stage["metrics"] for stage in self.record.finished_stages()}

    def score(self, texts: Sequence[str | Sequence[Message]]) -> list[float]:
        """Value texts, or conversations with their answers, by the reward model trained last: more is better.

        With the adapter of the stage that trained it, whichever answers otherwise. Raises PlanError where no stage of
        the run trains one.
        """
        trained = [stage for stage in self.plan.stages if implements(stage.plugin.plugin, "tunekit_score")]
        if not trained:
            raise PlanError([Problem("stages", "hold none that trains a reward model", "add a `reward` stage")])
        calls = self._context.calls
        assert isinstance(calls, Calls)
        stage = trained[-1]
        with self._adapters.using(stage.adapter, self.adapters.get(stage.adapter)) as bundle:
            found: list[float] = calls.one(
                stage.plugin, "tunekit_score", bundle=bundle, texts=list(texts), context=self._context
            )
        return found

    @property
    def exports(self) -> dict[str, Path]:
        """The folders of the exports that were made of the run, by their names."""
        return self.record.exports

    def export(self, target: Plugin[Any] | str, **options: Any) -> Export:
        """Write the model, with the adapter that answers, for others to read: `run.export("merged", dtype="bfloat16")`.

        `target` is an export plugin (`Merged(dtype="bfloat16")`) or its name. It is read again and compared with what
        was trained; ExportError, and no folder, where it says something else. Raises PlanError for what cannot be
        exported so, RunFolderError where the folder is there already.
        """
        problems: list[Problem] = []
        uses = exports_from_code([target if isinstance(target, Plugin) else {target: options}], problems)
        if problems:
            raise RecipeError(problems)
        taken = [*self.exports, *(path.name for path in (self.folder / "exports").glob("*"))]
        plan = plan_one_export(self.plan, uses[0], taken, self._name)
        with self._answering():
            return make_export(plan, plan.exports[0], self.record, self._adapters, self._name)

    def export_planned(self) -> list[Export]:
        """Make the exports that the recipe names and that are not made yet."""
        waiting = [export for export in self.plan.exports if export.name not in self.exports]
        return [make_export(self.plan, export, self.record, self._adapters, self._name) for export in waiting]


def next_folder(folder: str | Path) -> Path:
    """The folder itself where nothing is there yet, else the first free `folder-2`, `folder-3`, ..."""
    path, number = Path(folder), 1
    while path.exists():
        number += 1
        path = Path(f"{folder}-{number}")
    return path


def as_conversation(prompt: str | Sequence[Message]) -> Prompt:
    """A question as a conversation of one turn."""
    return (Message("user", prompt),) if isinstance(prompt, str) else tuple(prompt)
