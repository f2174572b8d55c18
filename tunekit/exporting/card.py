"""The model card: what was trained, on what, with which recipe, to which results, and how the export compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..recipe import Recipe
from ..record import Record
from ..values import Exported, ExportPlan, Plan
from .export import comparison

LIBRARIES = ("tunekit-core", "torch", "transformers", "peft")
HUB_ID_PARTS = 2


def write_card(plan: Plan, export: ExportPlan, record: Record, exported: Exported) -> str:
    """The card in Markdown, with the front matter that hubs read. No path of this machine stands in it."""
    model = shown_model(plan.recipe.model)
    parts = [
        _front_matter(plan, export),
        f"# {model} fine-tuned: {export.plugin.name}",
        f"Fine-tuned from `{model}` with tunekit: {_stages(plan)}.",
        *([exported.usage] if exported.usage else []),
        "## Verified",
        "This export was read again and compared with the model as it was trained.",
        _table(("", ""), comparison(exported.verification)),
        "Divergences are KL(trained || export) and KL(trained || base), a mean over predicted tokens.",
        "## Results",
        _table(("stage", "metric", "value"), list(_results(plan, record))),
        "## Recipe",
        f"```yaml\n{yaml.safe_dump(shown_recipe(record.given_recipe), sort_keys=False, allow_unicode=True)}```",
        "## Made with",
        ", ".join(f"{name} {plan.versions[name]}" for name in LIBRARIES if name in plan.versions),
    ]
    return "\n\n".join(parts) + "\n"


def shown_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as others may read it: of paths, only the last part."""
    mapping = recipe.to_mapping()
    mapping.pop("output", None)
    mapping.pop("export", None)
    return {**_without_paths(mapping), "model": shown_model(recipe.model)}


def shown_model(model: str) -> str:
    """The name of the base: a hub id or package as it is, of a path the last part."""
    local = model.startswith((".", "/", "~")) or Path(model).exists() or model.count("/") >= HUB_ID_PARTS
    return model if model.startswith("pkg:") or not local else Path(model).name


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_paths(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_paths(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _front_matter(plan: Plan, export: ExportPlan) -> str:
    model = plan.recipe.model
    known = {"base_model": model} if shown_model(model) == model and ":" not in model and "/" in model else {}
    tags = ["tunekit", *dict.fromkeys(stage.name for stage in plan.stages), export.plugin.name]
    return f"---\n{yaml.safe_dump({**known, 'tags': tags}, sort_keys=False)}---"


def _stages(plan: Plan) -> str:
    told = []
    for stage in plan.stages:
        names = ", ".join(Path(source.name).name for source in stage.sources)
        told.append(f"{stage.name} on {names}")
    return ", then ".join(told)


def _results(plan: Plan, record: Record) -> Iterator[tuple[str, str, str]]:
    for stage in record.finished_stages():
        for name, value in stage["metrics"].items():
            number = f"{value:.4g}" if isinstance(value, (int, float)) else str(value)
            yield plan.title(stage["index"]), name.replace("_", " "), number


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
