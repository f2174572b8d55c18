"""An adapter session: one loaded base, and adapters on it that are trained, asked, compared and dropped by name."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import engine, opening
from .adapters import NamedAdapters
from .catalog import Catalog
from .display import Section, html, terminal
from .engine import Watcher
from .errors import PlanError, Problem, RecipeError, RunFolderError, TunekitError
from .plan import add_estimate, make_plan
from .plan.adapters import BASE_CHANGED, NAMED
from .plugin import Plugin
from .recipe import Recipe, from_code, validate
from .recipe.model import AdapterOptions
from .record import Record
from .run import Run, Talk, next_folder
from .values import DEFAULT_ADAPTER, Answer, Message, Plan, final_of

if TYPE_CHECKING:
    from types import EllipsisType

    Chosen = str | EllipsisType | None


class Session:
    """One base model, loaded once, and any number of adapters on it, each by a name.

    `use` are the plugins of every run, an adapter plugin that carries several among them. Training one adapter leaves
    the others and the base as they are, bit for bit. Where an `adapter` can be chosen, it is the active one if left
    out, and None is the base alone.
    """

    def __init__(
        self, model: str, use: Sequence[Plugin[Any] | str] | Mapping[str, Any] = ("lora",), seed: int = 0
    ) -> None:
        self._catalog = Catalog.discover()
        self._recipe = from_code(model, use=use, seed=seed, catalog=self._catalog)
        self._talks: dict[str | None, Talk] = {}
        self._plan = make_plan(self._recipe, self._catalog, purpose="infer")
        _refuse(self._plan)

    @property
    def model(self) -> str:
        """The name of the base: the model it was made with, or the folder of the one that was merged last."""
        return self._recipe.model

    @property
    def adapters(self) -> dict[str, Path]:
        """The folder in which each adapter is saved, by its name, oldest first."""
        return {name: folder for name in self._carried.names if (folder := self._carried.folder(name)) is not None}

    @property
    def active(self) -> str | None:
        """The adapter that answers; None where the base does."""
        return self._carried.active

    def train(
        self,
        name: str,
        data: Any = None,
        stages: Sequence[Plugin[Any] | str | Mapping[str, Any]] = (),
        folder: str | Path | None = None,
        watchers: Sequence[Watcher] = (),
    ) -> Run:
        """Train an adapter, fresh or on from what it is, and leave the record that `Pipeline.run` leaves.

        `folder` is the run folder; left out, the first free one of `runs/NAME`, `runs/NAME-2` and so on. The adapter is
        the active one afterwards. Where training fails, the adapter is what it was before.
        """
        saved = self.adapters
        plan = add_estimate(make_plan(self._described(name, data, stages, saved), self._catalog))
        self._talks.clear()
        try:
            return engine.start(plan, folder or next_folder(f"runs/{name}"), watchers, self._carried)
        except BaseException:
            self._restore(plan.adapters, saved)
            raise

    def add(self, name: str, folder: str | Path) -> None:
        """Put a saved adapter on the base, by this name: of an adapter's folder, or of a run's.

        It is the active one afterwards. Raises RunFolderError where nothing is saved there, TunekitError where the name
        is taken.
        """
        if name in self._carried.names:
            raise TunekitError(f"there is an adapter named {name!r} already", "choose another name, or drop it first")
        _named(name)
        self._carried.use(name, _adapter_in(Path(folder)))

    def switch(self, name: str | None) -> None:
        """Let this adapter answer from now on; None: the base."""
        if name is not None:
            self._carried.folder(name)
        self._carried.use(name)

    def drop(self, name: str) -> None:
        """Take an adapter off the model and free its memory; what is saved of it stays."""
        self._carried.drop(name)
        self._talks.clear()
        gc.collect()  # modules and their hooks hold each other

    def merge(self, name: str, folder: str | Path) -> None:
        """Add the only adapter into the weights and save them, with the tokenizer, as a model in a folder of its own.

        It is the base from now on, and the model that further runs of this session name. Raises TunekitError where
        other adapters stand on the base as it is, and where it is quantised and cannot hold the sum exactly.
        """
        final = Path(folder)
        if final.exists():
            raise RunFolderError(f"{final} is there already", "choose a folder that is not")
        # Of the adapter, where the backend has one of its own: with the chat template that it was trained with.
        tokenizer = getattr(self._talk(name).backend, "tokenizer", self._carried.bundle.tokenizer)
        bundle = self._carried.merge(name)
        partial = final.with_name(f".partial-{final.name}")
        shutil.rmtree(partial, ignore_errors=True)
        bundle.model.save_pretrained(str(partial))
        tokenizer.save_pretrained(str(partial))
        partial.rename(final)
        self._recipe = replace(self._recipe, model=str(final))
        self._carried.rename_base(str(final))
        self._talks.clear()

    def chat(self, prompt: str | Sequence[Message], adapter: Chosen = ..., **settings: Any) -> str:
        """Answer one question or conversation. `settings` are those of GenerationSettings."""
        return self._talk(adapter).chat(prompt, **settings)

    def ask(self, prompts: Sequence[str | Sequence[Message]], adapter: Chosen = ..., **settings: Any) -> list[Answer]:
        """Answer many questions or conversations in one batch, in their order."""
        return self._talk(adapter).ask(prompts, **settings)

    def perplexity(self, texts: Sequence[str], adapter: Chosen = ...) -> float:
        """Perplexity over all predicted tokens of the texts."""
        return self._talk(adapter).perplexity(texts)

    def compare(
        self, prompts: Sequence[str], adapters: Sequence[str | None] | None = None, **settings: Any
    ) -> Comparison:
        """Answer each question with each adapter, None being the base; left out: with the base and all of them."""
        chosen = (None, *self._carried.names) if adapters is None else tuple(adapters)
        answers = {name: [each.text for each in self.ask(prompts, name, **settings)] for name in chosen}
        return Comparison(tuple(prompts), answers)

    def __repr__(self) -> str:
        names = [f"{name} (active)" if name == self.active else name for name in self._carried.names]
        return f"Session({self.model!r}: {', '.join(names) or 'no adapters'})"

    def __rich__(self) -> Any:
        return terminal([self._section()])

    def _repr_html_(self) -> str:
        return html([self._section()])

    def _section(self) -> Section:
        saved = self.adapters
        rows = [
            (name, "active" if name == self.active else "", str(saved.get(name, ""))) for name in self._carried.names
        ]
        base = ("the base", "active" if self.active is None else "", self.model)
        return Section("Session", ("adapter", "", "saved in"), (base, *rows))

    @cached_property
    def _carried(self) -> NamedAdapters:
        """The base, loaded when it is first needed, as a run loads it."""
        return opening.open_model(self._plan, Path(), purpose="train")

    def _talk(self, adapter: Chosen) -> Talk:
        name = self.active if isinstance(adapter, type(...)) else adapter
        if name not in self._talks:
            if name is not None:
                self._carried.folder(name)
            with self._carried.using(name):
                self._talks[name] = Talk(self._carried, self._carried.context, name)
        return self._talks[name]

    def _described(self, name: str, data: Any, stages: Sequence[Any], saved: Mapping[str, Path]) -> Recipe:
        """The recipe of a run, whose stages train this adapter where they name none of their own.

        An adapter that the session has already begins as it is, which is how it was saved.
        """
        given = from_code(self.model, data, (), stages, seed=self._recipe.seed, catalog=self._catalog)
        named, begun = [], set[str]()
        for stage in given.stages:
            adapter = _named(name) if stage.adapter.name == DEFAULT_ADAPTER else stage.adapter
            if adapter.name in saved and adapter.name not in begun:
                adapter = adapter.model_copy(update={"start": str(saved[adapter.name])})
            begun.add(adapter.name)
            named.append(replace(stage, adapter=adapter))
        origins = {**self._recipe.origins, **given.origins}
        return replace(given, use=self._recipe.use, stages=tuple(named), origins=origins)

    def _restore(self, names: Sequence[str], saved: Mapping[str, Path]) -> None:
        """Put these adapters back to what was saved of them."""
        for name in names:
            if name in self._carried.names:
                self._carried.drop(name)
            if name in saved:
                self._carried.use(name, saved[name])


@dataclass(frozen=True)
class Comparison:
    """What each adapter answers to each question; None is the base."""

    prompts: tuple[str, ...]
    answers: Mapping[str | None, Sequence[str]]

    def __rich__(self) -> Any:
        return terminal([self._section()])

    def _repr_html_(self) -> str:
        return html([self._section()])

    def _section(self) -> Section:
        columns = ("question", *("the base" if name is None else name for name in self.answers))
        rows = zip(self.prompts, *self.answers.values(), strict=True)
        return Section("Answers", columns, tuple(rows))


def _named(name: str) -> AdapterOptions:
    """RecipeError where this is no name for an adapter."""
    problems: list[Problem] = []
    options = validate(AdapterOptions, {"name": name}, "adapter", problems)
    if options is None:
        raise RecipeError(problems)
    return options


def _refuse(plan: Plan) -> None:
    """Raise PlanError where the plugins cannot carry several adapters on a base that stays what it is."""
    changing = next((planned for planned in plan.plugins if BASE_CHANGED in planned.plugin.provides), None)
    if changing is not None:
        message = f"{changing.name} changes the base, on which every adapter of a session stands"
        raise PlanError([Problem(changing.key, message, "take it out, or run it by itself with Pipeline")])
    if not plan.provides(NAMED):
        message = "names no plugin that carries several adapters on one model"
        raise PlanError([Problem("use", message, "add one, such as `lora`")])


def _adapter_in(folder: Path) -> Path:
    """The adapter saved in a folder: the folder itself, or what a run is about."""
    if not (folder / "run.json").is_file():
        if not folder.is_dir():
            raise RunFolderError(f"there is no folder {folder}", "name that of an adapter or of a run")
        return folder
    record = Record.open(folder)
    saved = record.adapters
    if not saved:
        raise RunFolderError(f"{folder} has left no adapter", "name a run that has trained one")
    return saved[final_of([stage.adapter.name for stage in record.recipe.stages])]
