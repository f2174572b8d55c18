"""Training on top of a saved adapter: it is added into the weights, and the fresh one learns what is left.

The weights are W + s B A, rounded to the dtype they are stored in. What is saved is for these and not for W, so the
folder of the fresh adapter holds a copy of the one below: merging the copy into W, then loading the fresh adapter,
gives the model that was trained, without tunekit as well.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunekit.errors import Problem, TunekitError
from tunekit.values import Plan, Report

from .starting import SETTINGS, read_settings

BELOW = "below"
"""The folder, inside that of an adapter, with the one that it stands on."""
NOTE = "stacked.json"
WEIGHTS = "adapter_model.safetensors"


def stack_problems(folder: Path, plan: Plan) -> Iterator[Problem]:
    """What speaks against stacking on this folder."""
    if read_settings(folder) is None or not (folder / WEIGHTS).is_file():
        remedy = "name the folder of a LoRA adapter that a run has saved"
        yield Problem("use.stack.adapter", f"{folder} holds no LoRA adapter in PEFT's format", remedy)
    for stage in plan.stages:
        if stage.start is not None:
            message = "begins with a saved adapter, and stack trains a fresh one on top of a saved one"
            yield Problem(f"{stage.key}.adapter.start", message, "leave one of the two out")


def merge_(model: Any, folder: Path) -> Report:
    """Add the adapter of a folder into the weights of a loaded model, in place, after those that it stands on.

    There is no way back but to load the model again: a copy of its weights would take as much memory as they do.
    Raises TunekitError where the folder is not for this model, or holds nothing that was trained.
    """
    chain = list(_chain(folder))
    learnt = sum(_merge_one_(model, each) for each in chain)
    if not learnt:
        raise TunekitError(f"{folder} changes no weight of the model", "name an adapter that was trained")
    details = {"adapters": [str(each) for each in chain], "layers": learnt, "fingerprint": fingerprint(folder)}
    return Report(f"{folder} is added into {learnt} layers", details)


def keep(folder: Path, below: Path) -> Path:
    """Copy the adapter below into the folder of the one on top, with a note of what it is."""
    shutil.copytree(below, folder / BELOW, dirs_exist_ok=True)
    (folder / NOTE).write_text(json.dumps({"below": BELOW, "fingerprint": fingerprint(below)}, indent=1))
    return folder


def require_same(folder: Path, below: Path) -> None:
    """Raise TunekitError where the adapter in `folder` was trained on top of another one than `below`."""
    try:
        expected = json.loads((folder / NOTE).read_text())["fingerprint"]
    except (OSError, ValueError, KeyError):
        expected = None
    if expected != fingerprint(below):
        what = "was trained on the model alone" if expected is None else "was trained on top of another adapter"
        remedy = f"set use.stack.adapter: {folder / BELOW}" if expected else "leave stack out"
        raise TunekitError(f"{folder} {what} than {below}" if expected else f"{folder} {what}", remedy)


def fingerprint(folder: Path) -> str:
    """Of settings and weights of an adapter, and of those that it stands on."""
    digest = hashlib.sha256()
    for each in _chain(folder):
        for name in (SETTINGS, WEIGHTS):
            digest.update((each / name).read_bytes())
    return digest.hexdigest()


def _chain(folder: Path) -> Iterator[Path]:
    """The adapter, after those that it stands on."""
    if (folder / NOTE).is_file():
        yield from _chain(folder / BELOW)
    yield folder


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
