"""The adapters of one loaded model, by their names: attached when first asked for, switched to afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from .calls import Calls
from .errors import TunekitError
from .plan import EXTENDED, other_base
from .values import Adapters, Context, ModelBundle, Prepared, Report, StagePlan

Preparing = Callable[[], Prepared]


class NamedAdapters:
    """One loaded base and the adapters on it, of which one is active at most.

    `bundle` is the model as it is now, `active` the adapter it computes with: None where it is the base. Who attaches
    an adapter is seen from the first of `stages` that trains it, since a stage may bring an adapter plugin of its own.
    `patched` is what was done to the model when it was loaded.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        context: Context,
        stages: Sequence[StagePlan] = (),
        patched: Mapping[str, Report] | None = None,
    ) -> None:
        self.bundle, self.context, self.stages, self.patched = bundle, context, tuple(stages), dict(patched or {})
        self.active: str | None = None
        self._base = bundle
        self._known: dict[str, ModelBundle] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Those that the model carries, oldest first."""
        return tuple(self._known)

    def use(self, name: str | None, folder: Path | None = None, data: Preparing | None = None) -> ModelBundle:
        """The model with this adapter: switched to where it carries it, else fresh, or the saved one of a folder.

        With None it is the base alone. `data` gives what a fresh adapter will learn from; left out: the context's.
        Raises TunekitError where what was trained is no adapter, so that nothing can be switched.
        """
        model = self.bundle.model
        if name != self.active and (name is None or name in self._known):
            model = self._switching(name).switch(model, name)
        elif name is not None and name not in self._known:
            self._known[name] = self._attached(name, folder, data)
            model = self._known[name].model
        self.active = name
        self.bundle = replace(self._base if name is None else self._known[name], model=model)
        return self.bundle

    def keep(self, bundle: ModelBundle, folder: Path | None) -> None:
        """Take the active adapter as a stage has left it, saved in a folder."""
        assert self.active is not None, "a stage trains the active adapter"
        self.bundle = self._known[self.active] = replace(bundle, saved_adapter=folder)

    def folder(self, name: str) -> Path | None:
        """Where an adapter that the model carries is saved; None where it is not."""
        return self._require(name).saved_adapter

    def drop(self, name: str) -> None:
        """Take an adapter off the model, which is the base afterwards if it was the active one."""
        self._require(name)
        active = self.active
        model = self._switching(name).drop(self.use(None).model, name)
        del self._known[name]
        self.bundle = replace(self.bundle, model=model)
        self.use(None if active == name else active)

    def merge(self, name: str) -> ModelBundle:
        """Add the only adapter into the weights: they are the base from now on."""
        self._require(name)
        if others := [other for other in self._known if other != name]:
            reason = (
                f"{name} cannot be merged while the model carries {', '.join(others)}, trained on the base as it is"
            )
            raise TunekitError(reason, "drop them first")
        quantized = self._base.quantization
        if quantized is not None and quantized.merge != "exact":
            reason = f"{name} cannot be merged into weights that {quantized.method} has rounded"
            raise TunekitError(reason, "load the base without quantisation to merge")
        model = self._switching(name).merge(self.use(name).model, name)
        self._known.clear()
        self.active, self._base = None, replace(self._base, model=model)
        self.bundle = self._base
        return self.bundle

    def rename_base(self, source: str) -> None:
        """Call the base by the place where it is saved now."""
        self._base = replace(self._base, source=source)
        self._known = {name: replace(bundle, source=source) for name, bundle in self._known.items()}
        self.bundle = replace(self.bundle, source=source)

    @contextmanager
    def using(self, name: str | None, folder: Path | None = None) -> Iterator[ModelBundle]:
        """The model with this adapter for a while; what was active comes back afterwards."""
        before = self.active
        try:
            yield self.use(name, folder)
        finally:
            self.use(before)

    @contextmanager
    def serving(self, context: Context, stages: Sequence[StagePlan]) -> Iterator[None]:
        """Attach as a run wants it for a while: by its own plugins, in its own record."""
        before = self.context, self.stages
        self.context, self.stages = context, tuple(stages)
        try:
            yield
        finally:
            self.context, self.stages = before

    def _attached(self, name: str, folder: Path | None, data: Preparing | None) -> ModelBundle:
        calls = self.context.calls
        assert isinstance(calls, Calls)
        stage = next((stage for stage in self.stages if stage.adapter == name), None)
        view = calls.for_run() if stage is None else calls.for_stage(stage.index)
        owner = view.owner("tunekit_attach_adapter")
        bundle = replace(self._base, model=self.bundle.model, adapter_name=name, saved_adapter=folder)
        if owner is None:
            return bundle
        if folder is not None:
            added = {EXTENDED} if stage is not None and stage.start == folder else set[str]()
            if (other := other_base(folder, view.plugins, "", added)) is not None:
                raise TunekitError(other.message, other.remedy)
        context = replace(self.context, calls=view, data=data or self.context.data)
        attached: ModelBundle = view.one(owner, "tunekit_attach_adapter", bundle=bundle, context=context)
        return replace(attached, adapter=owner.name)

    def _switching(self, name: str | None) -> Adapters:
        """What switches: that of the adapter itself, else of one that the model carries."""
        carried = [self._known[name]] if name in self._known else list(self._known.values())
        switching = next((bundle.adapters for bundle in carried if bundle.adapters is not None), None)
        if switching is None:
            what = f"{', '.join(self._known)} of {self._base.source} changed the weights themselves"
            raise TunekitError(f"{what}, which cannot be switched", "train an adapter instead, such as lora")
        return switching

    def _require(self, name: str) -> ModelBundle:
        if name not in self._known:
            carried = ", ".join(self._known) or "none"
            raise TunekitError(f"there is no adapter named {name!r}", f"the model carries {carried}")
        return self._known[name]
