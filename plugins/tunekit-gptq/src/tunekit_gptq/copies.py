"""Copies of a model that transformers can load: quantised by its data, or renamed from what older packages wrote.

They are kept between runs, each whole or not there. A run remembers which copy it was trained on, so that it can be
opened when its data has gone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunekit.data import cache_folder
from tunekit.errors import TunekitError
from tunekit.record.files import write_json
from tunekit.values import Context, Event, LoadRequest
from tunekit_transformers import stored_quantization
from tunekit_transformers.kept import alone, is_whole, written_beside
from tunekit_transformers.sources import LEGACY

from .calibrating import choose_rows, fingerprint, rows_of_embedding
from .packed import Packed
from .stored import legacy

FORMAT = 2
"""Part of every key: raise it when what is written changes."""
WHOLE = "tunekit-copy.json"
REMEMBERED = "quantized.json"
RUN = "run.json"


def loadable(plugin: Packed[Any], request: LoadRequest, context: Context) -> str:
    """The model of the request where it can be loaded as it is, else the folder of a copy, made now if need be."""
    if stored_quantization(request) is not None:
        return request.model
    said = legacy(request.model)
    with context.processes.first_alone():
        if said is not None:
            return str(_renamed(plugin, Path(request.model).expanduser(), said))
        return str(_quantized(plugin, request, context))


def _quantized(plugin: Packed[Any], request: LoadRequest, context: Context) -> Path:
    remembered = _recall(context.folder)
    if remembered is not None:
        return remembered
    if request.data is None:
        what = f"use.{plugin.method} quantises {request.model} by data, and there is none"
        raise TunekitError(what, "name a model that is quantised already, or a recipe with a stage")
    data = request.data()
    dense = context.calls.own("tunekit_load_model", request=replace(request, quantization=None), context=context).model
    chosen = choose_rows(data, plugin.config.samples, plugin.config.sample_tokens, rows_of_embedding(dense))
    rows = chosen.rows
    key = _key(plugin, fingerprint(dense), rows)
    folder = _cache(plugin) / f"{plugin.method}-{key}"

    def make(partial: Path) -> None:
        from .producing import quantize

        message = f"quantising {request.model} by {plugin.method} on {len(rows)} rows, once"
        if chosen.left_out:
            message += f", without {chosen.left_out} tokens in them that it does not know yet"
        context.emit(Event(kind="started", stage="load", message=message))
        quantize(dense, request.tokenizer, plugin.job(dense, rows, partial, request.precision.device))

    _make_whole(folder, make)
    _remember(context, folder)
    return folder


def _key(plugin: Packed[Any], model: str, rows: list[list[int]]) -> str:
    from importlib import metadata

    parts = [FORMAT, metadata.version("gptqmodel"), plugin.settings(), model, rows]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _cache(plugin: Packed[Any]) -> Path:
    chosen = plugin.config.cache
    return cache_folder("quantized") if chosen is None else Path(chosen).expanduser()


def _recall(run: Path) -> Path | None:
    """The copy that a run was trained on; None where there is no run, or the copy has gone and has to be made anew."""
    try:
        folder = Path(json.loads((run / REMEMBERED).read_text(encoding="utf-8"))["folder"])
    except (OSError, ValueError, KeyError):
        return None
    return folder if is_whole(folder, WHOLE) else None


def _remember(context: Context, folder: Path) -> None:
    run = context.folder
    if not context.processes.first or not (run / RUN).is_file():
        return
    known = run / REMEMBERED
    if known.is_file() and Path(json.loads(known.read_text(encoding="utf-8"))["folder"]).name != folder.name:
        what = f"{run} was trained on a quantised copy that has gone, and quantising again gives another"
        raise TunekitError(what, "bring back its model and its data as they were")
    write_json(known, {"folder": str(folder.absolute())})


def _renamed(plugin: Packed[Any], model: Path, said: dict[str, Any]) -> Path:
    """A folder of links to a checkpoint of auto-gptq's or autoawq's, with a config.json that says how it is stored."""
    weights = _weights(model)
    state = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(model.iterdir())]
    key = hashlib.sha256(json.dumps([FORMAT, str(model.absolute()), state]).encode()).hexdigest()[:16]

    def make(partial: Path) -> None:
        for path in model.iterdir():
            name = "model.safetensors" if path == weights else path.name
            if name != "config.json" and name not in LEGACY and path.is_file():
                (partial / name).symlink_to(path.absolute())
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        write_json(partial / "config.json", {**config, "quantization_config": said})

    folder = _cache(plugin) / f"{plugin.method}-{key}"
    _make_whole(folder, make)
    return folder


def _weights(model: Path) -> Path | None:
    """The one file of weights where it has a name of its own, such as gptq_model-4bit-128g.safetensors."""
    if (model / "model.safetensors").exists() or (model / "model.safetensors.index.json").exists():
        return None
    found = sorted(model.glob("*.safetensors"))
    if len(found) != 1:
        raise TunekitError(f"{model} holds {len(found)} files of safetensors, and none is called model.safetensors")
    return found[0]


def _make_whole(folder: Path, make: Callable[[Path], None]) -> None:
    """Have a folder written beside and renamed where it is not there yet; two processes at once are safe."""
    if is_whole(folder, WHOLE):
        return
    with alone(folder, "the quantised model", "free some space, or choose another folder by `cache`"):
        if is_whole(folder, WHOLE):
            return
        with written_beside(folder) as partial:
            make(partial)
            sizes = {path.name: path.stat().st_size for path in partial.iterdir() if path.is_file()}
            write_json(partial / WHOLE, {"files": sizes})
