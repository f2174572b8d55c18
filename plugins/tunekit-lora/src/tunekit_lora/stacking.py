"""Training on top of a saved adapter: it is added into the weights, and the fresh one learns what is left.

The weights are W + s B A, rounded to the dtype they are stored in. What is saved is for these and not for W, so the
folder of the fresh adapter holds a copy of the one below: merging the copy into W, then loading the fresh adapter,
gives the model that was trained, without tunekit as well.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tunekit.errors import PlanError, Problem, RunFolderError, TunekitError
from tunekit.plan import EXTENDED, other_base
from tunekit.record import Record
from tunekit.values import LoadRequest, Plan, Report

from . import Stack
from .saved import BELOW, STACKED, WEIGHTS, chain_of, fingerprint, is_saved, misplaced

VOCABULARY = "vocabulary"
ADDED = frozenset({EXTENDED, VOCABULARY})
"""What may have come since the adapter below was trained: it is added into weights that have grown before."""
HELD = "tunekit_stacked"
"""The attribute of a model with the adapter that was added into its weights: its fingerprint, and the folder."""
COPY = "tunekit_below"
"""The attribute of a config with the place of an adapter's copy, from before the model is loaded until it is added."""


def stack_problems(folder: Path, plan: Plan) -> Iterator[Problem]:
    """What speaks against stacking on this folder."""
    place = place_of(folder, plan.recipe.output)
    if not is_saved(place):
        remedy = "name the folder of a LoRA adapter that a run has saved"
        yield Problem("use.stack.adapter", f"{folder} holds no LoRA adapter in PEFT's format", remedy)
    elif (other := other_base(place, plan.plugins, "use.stack.adapter", ADDED)) is not None:
        yield other


def refuse_all_rows(folder: Path, plan: Plan, model: Any) -> None:
    """Raise PlanError where the adapter below changes all rows of an embedding or head that gets new ones.

    It would change those too, or does not fit. Which rows of single tokens it has learnt does not matter.
    """
    from safetensors import safe_open

    from .named import bare

    if not any(VOCABULARY in one.plugin.provides and one.plugin.base for one in plan.plugins) or model is None:
        return
    whole = bare(model)
    ends = {id(end) for end in (whole.get_input_embeddings(), whole.get_output_embeddings())}
    names = [f"base_model.model.{name}" for name, module in whole.named_modules() if id(module) in ends]
    for each in chain_of(place_of(folder, plan.recipe.output)):
        if other_base(each, plan.plugins, "", ADDED - {VOCABULARY}) is None:
            continue  # it knows the new tokens, or nothing is known of it
        with safe_open(each / WEIGHTS, framework="pt") as file:
            keys = list(file.keys())
        changed = next((name for name in names for key in keys if _changes_all(key, name)), None)
        if changed is not None:
            what = f"{each} changes all rows of {changed.removeprefix('base_model.model.')}, and vocabulary adds some"
            remedy = "export it as `merged: {}`, and name that folder as the model"
            raise PlanError([Problem("use.stack.adapter", what, remedy)])


def _changes_all(key: str, module: str) -> bool:
    """Whether a saved tensor is of a low-rank update of a module, or the module whole."""
    part = key.removeprefix(f"{module}.")
    return part != key and part.startswith(("lora_", "weight"))


def place_of(folder: Path, run: str | Path | None) -> Path:
    """The copy that a run has kept of it, once a stage of it is done; else the folder, which may become another."""
    if run is None:
        return folder
    try:
        finished = Record.open(run).adapters.values()
    except RunFolderError:
        return folder
    return next((each / BELOW for each in finished if is_saved(each / BELOW)), folder)


def other_below(folder: Path, plan: Plan) -> tuple[str, str] | None:
    """Why the adapter in a folder does not stand on what the plan adds into the weights, and what to do; None: it does.

    Of a stack on what is no adapter the stack itself says so.
    """
    run = plan.recipe.output
    stacks = [place_of(one.plugin.config.adapter, run) for one in plan.plugins if isinstance(one.plugin, Stack)]
    return misplaced(folder, next(map(fingerprint, stacks), None)) if all(map(is_saved, stacks)) else None


def take_copy(request: LoadRequest, folder: Path, run: Path) -> LoadRequest:
    """Let the model that is loaded know of the copy in the run, where the adapter itself is gone."""
    place = place_of(folder, run)
    return request if place == folder else request.configured(partial(_remember_, place=place))


def _remember_(config: Any, place: Path) -> None:
    setattr(config, COPY, str(place))


def merge_(model: Any, named: Path) -> Report:
    """Add the adapter of a folder into the weights of a loaded model, in place, after those that it stands on.

    There is no way back but to load the model again: a copy of its weights would take as much memory as they do.
    Raises TunekitError where the folder is not for this model, or holds nothing that was trained.
    """
    folder = Path(vars(model.config).pop(COPY, named))
    chain = list(chain_of(folder))
    learnt = sum(_merge_one_(model, each) for each in chain)
    if not learnt:
        raise TunekitError(f"{folder} changes no weight of the model", "name an adapter that was trained")
    found = fingerprint(folder)
    setattr(model, HELD, (found, folder))
    details = {"adapters": [str(each) for each in chain], "layers": learnt, "fingerprint": found}
    return Report(f"{folder} is added into {learnt} layers", details)


def keep(folder: Path, model: Any) -> Path:
    """Copy the adapter below into the folder of the one on top, with a note of what it is."""
    found, below = getattr(model, HELD)
    shutil.copytree(below, folder / BELOW, dirs_exist_ok=True)
    (folder / STACKED).write_text(json.dumps({"below": BELOW, "fingerprint": found}, indent=1))
    return folder


def require_same(folder: Path, model: Any) -> None:
    """Raise TunekitError where the adapter in `folder` was trained on top of another one than `model` holds."""
    held, _ = getattr(model, HELD, (None, None))
    wrong = misplaced(folder, held)
    if wrong is not None:
        what, remedy = wrong
        raise TunekitError(f"{folder} {what}", remedy)


def _merge_one_(model: Any, folder: Path) -> int:
    """Add one adapter into the weights; returns how many layers it had learnt something for."""
    import peft

    from .wrapping import peft_reading_old_names

    with peft_reading_old_names(), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            wrapped: Any = peft.PeftModel.from_pretrained(model, str(folder))
        except (ValueError, RuntimeError, UserWarning) as error:
            why = " ".join(str(error).split())[:300]
            remedy = "name an adapter that was trained on this model"
            raise TunekitError(f"{folder} does not fit the model: {why}", remedy) from error
    learnt = sum(_has_learnt(name, each) for name, each in wrapped.named_parameters())
    merged = wrapped.merge_and_unload(safe_merge=True)
    assert merged is model, "PEFT merges in place"
    model.requires_grad_(True)
    return learnt


def _has_learnt(name: str, parameter: Any) -> bool:
    """Whether this is the part of an adapter that starts at zero, or a module trained whole, and not zero."""
    last = ("lora_B", "lora_embedding_A", "modules_to_save", "trainable_tokens_delta")
    return any(f".{part}." in f"{name}." for part in last) and bool(parameter.detach().any())
