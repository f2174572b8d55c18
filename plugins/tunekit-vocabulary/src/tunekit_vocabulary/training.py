"""Training new rows alone, beside a low-rank adapter: PEFT keeps them with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunekit.errors import PlanError, Problem
from tunekit.values import Start

from .rows import rows_of


def train_rows(config: Any, model: Any) -> Any:
    """Return the `peft.LoraConfig` with the new tokens' rows trained, in the embedding and in a head of its own.

    A matrix that trains whole (`modules_to_save`) has them already. Raises PlanError where one gets a low-rank update:
    PEFT cannot do both to one layer.
    """
    ids = sorted(rows_of(model.config).values())
    if not ids:
        return config
    wanted = {name: ids for name in _ends(model) if not _named(name, config.modules_to_save or ())}
    for name in wanted:
        if isinstance(config.target_modules, (list, set, tuple)) and _named(name, config.target_modules):
            what = f"{name} gets a low-rank update, and the rows of new tokens are to train as they are"
            remedy = (
                "take it out of the targets, name it in use.lora.modules_to_save, or set use.vocabulary.train: false"
            )
            raise PlanError([Problem("use.lora.targets", what, remedy)])
    asked = config.trainable_token_indices or {}
    if not isinstance(asked, dict):
        asked = {next(iter(_ends(model))): asked}
    merged = {name: sorted({*asked.get(name, ()), *wanted.get(name, ())}) for name in {**asked, **wanted}}
    return replace(config, trainable_token_indices=merged or None)


def refuse_other_rows(train: bool, start: Start, model: Any) -> None:
    """Raise PlanError where the low-rank adapter that a stage begins with trains the new rows unlike `train` says."""
    saved = _settings(start.folder)
    ids, ends = set(rows_of(model.config).values()), _ends(model)
    if saved is None or not ids:
        return
    held = saved.get("trainable_token_indices") or {}
    held = held if isinstance(held, dict) else {ends[0]: held}
    whole = [name for name in ends if _named(name, saved.get("modules_to_save") or ())]
    idle = [name for name in ends if name not in whole and not ids <= set(held.get(name, ()))]
    trained = [name for name, rows in held.items() if ids & set(rows)]
    if train and idle:
        where = f" in {idle[0]}" if len(idle) < len(ends) else ""
        what = f"{start.folder} trains no rows of the new tokens{where}, and use.vocabulary.train is true"
        remedy = "start fresh" if trained else "set use.vocabulary.train: false, or start fresh"
    elif not train and trained:
        what = f"{start.folder} trains rows of the new tokens, and use.vocabulary.train is false"
        remedy = "set use.vocabulary.train: true, or start fresh"
    else:
        return
    raise PlanError([Problem(start.key, what, remedy)])


def _settings(folder: Path) -> dict[str, Any] | None:
    """PEFT's settings of a saved LoRA adapter; None where the folder holds none."""
    try:
        saved: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return saved if isinstance(saved, dict) and saved.get("peft_type") == "LORA" else None


def _ends(model: Any) -> list[str]:
    """The names of embedding and head; the embedding's alone where they are one matrix."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    tied = ends[1] is None or ends[0].weight is ends[1].weight or model.config.get_text_config().tie_word_embeddings
    wanted = ends[:1] if tied else ends
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(end)] for end in wanted]


def _named(name: str, among: Any) -> bool:
    return any(name == each or name.endswith(f".{each}") for each in among)
