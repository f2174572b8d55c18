"""Making one export: the plugin writes and measures, the numbers are judged, the card is written, the folder named."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ..adapters import NamedAdapters
from ..calls import Calls
from ..data import first_data
from ..errors import ExportError, RunFolderError
from ..opening import open_dense, open_model
from ..options import ExportConfig
from ..plan.adapters import ADAPTER
from ..record import Record, write_json, write_text
from ..values import Context, Exported, ExportPlan, ExportRequest, ModelBundle, Plan
from .card import shown_model, write_card
from .export import CARD, DETAILS, Export
from .judging import judge, judge_earlier
from .rows import compared_rows


def make_export(plan: Plan, export: ExportPlan, record: Record, adapters: NamedAdapters, name: str | None) -> Export:
    """Export the model with this adapter. ExportError, and no folder, where the export is not what was trained."""
    config = export.plugin.plugin.config
    assert isinstance(config, ExportConfig), f"the options of {export.plugin.name} are no ExportConfig"
    final = config.folder or record.folder / "exports" / export.name
    saved = record.adapters.get(name) if name else None
    with _written_beside(final) as folder, adapters.using(name, saved) as bundle:
        rows, held_out = compared_rows(plan, record, name, config, bundle.tokenizer)
        request = ExportRequest(
            folder,
            plan.recipe.model,
            rows,
            held_out,
            base=lambda: open_model(plan, record.folder).bundle,
            dense=lambda original: _dense(plan, record, name, original),
            adapter=saved,
            earlier=record.exports,
            data=first_data(plan, Calls(plan.plugins), bundle.tokenizer),
        )
        exported = _call(export, record, bundle, request, adapters.context)
        if exported.of is None:
            judge(export.name, exported.verification, config.tolerance)
        else:
            judge_earlier(exported.of, record.exports[exported.of])
        _describe(plan, export, record, folder, exported)
    record.note_export(
        export.name, final, {"target": export.plugin.name, "verification": exported.verification, **exported.facts}
    )
    return Export(export.name, export.plugin.name, final, exported.verification, exported.facts)


def _call(
    export: ExportPlan, record: Record, bundle: ModelBundle, request: ExportRequest, context: Context
) -> Exported:
    calls = Calls([export.plugin], record.call)
    exported: Exported = calls.one(
        export.plugin, "tunekit_export", bundle=bundle, request=request, context=replace(context, folder=record.folder)
    )
    return exported


def _dense(plan: Plan, record: Record, name: str | None, original: bool) -> ModelBundle:
    """Load what was trained in dense layers, and merge the adapter where it is one."""
    adapters = open_dense(plan, record.folder, record.artefact("model"), original)
    bundle = adapters.use(name, record.adapters.get(name) if name else None)
    if name is None or bundle.adapter is None:
        return bundle
    if bundle.adapters is None and not plan.provides(ADAPTER):
        return bundle
    try:
        if bundle.adapters is None:
            raise NotImplementedError("it knows no way")
        return adapters.merge(name)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        message = f"what {bundle.adapter} has trained cannot be added into the weights: {error}"
        raise ExportError(message, "export the adapter alone: `adapter: {}`") from error


def _describe(plan: Plan, export: ExportPlan, record: Record, folder: Path, exported: Exported) -> None:
    """Write the numbers and the card beside the files."""
    write_json(
        folder / DETAILS,
        {
            "target": export.plugin.name,
            "options": export.plugin.plugin.config.model_dump(mode="json", exclude={"folder"}),
            "model": shown_model(plan.recipe.model),
            "made_by": f"{export.plugin.distribution} {export.plugin.version}",
            "verification": exported.verification,
            **exported.facts,
        },
    )
    write_text(folder / CARD, write_card(plan, export, record, exported))


@contextmanager
def _written_beside(final: Path) -> Iterator[Path]:
    """A folder to write in, which gets its name when all has gone well, and is gone where not."""
    if final.exists():
        raise RunFolderError(f"{final} is there already", "choose another `folder` for the export, or remove it")
    partial = final.with_name(f".partial-{final.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise RunFolderError(f"cannot write {final}: {error.strerror or error}", "choose another `folder`") from error
    try:
        yield partial
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
