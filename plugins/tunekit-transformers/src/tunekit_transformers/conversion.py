"""GGUF files become safetensors folders in a cache, once. Two processes at once are safe; half a copy is never used."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import lru_cache
from pathlib import Path
from typing import Any

from tunekit.errors import TunekitError

from .gguf_header import read_header, write_without_vocabulary
from .kept import alone, is_whole, written_beside

FORMAT = "1"
"""Part of every key: raise it when what a conversion writes changes."""
MANIFEST = "tunekit-conversion.json"
BLOCK, BLOCKS = 1 << 16, 32


def fingerprint(path: Path) -> str:
    """Hash a file by its size, head, tail and 32 blocks in between: 24 hex digits, in milliseconds."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"{FORMAT} {size}".encode())
    with path.open("rb") as file:
        for index in range(BLOCKS + 1):
            file.seek(max(0, size - BLOCK) * index // BLOCKS)
            digest.update(file.read(BLOCK))
    return digest.hexdigest()[:24]


def converted_folder(path: Path, cache: Path) -> Path:
    """Where the converted copy of this GGUF file is, or will be; it exists only when complete."""
    return cache / f"{path.stem}-{fingerprint(path)}"


def convert(path: Path, cache: Path, tell: Callable[[str], None]) -> Path:
    """Return the folder of the converted copy, made now if it is not there yet.

    `tell` is told before the work starts. Raises TunekitError where the file cannot be converted or the cache not
    written.
    """
    folder = converted_folder(path, cache)
    if is_complete(folder):
        return folder
    remedy = "free some space or set use.transformers.cache to another folder"
    with alone(folder, "the converted model", remedy):
        if not is_complete(folder):
            from .sources import conversion_seconds

            tell(f"converting {path.name} to safetensors, once (about {conversion_seconds(path.stat().st_size)} s)")
            with written_beside(folder) as partial:
                _write_copy(path, partial)
                _write_manifest(path, partial)
    return folder


def is_complete(folder: Path) -> bool:
    """Whether every file the conversion wrote is there in its full size."""
    return is_whole(folder, MANIFEST)


def _write_copy(path: Path, target: Path) -> None:
    """Dequantise with transformers: matrices that are quantised in the file become bf16, others keep their dtype."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    dtype = getattr(torch, read_header(path).float_type or "bfloat16")
    config, tokenizer = read_gguf(path)
    with reading_gguf(path):
        model = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            config=config,
            dtype=dtype,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.config.architectures = [type(model).__name__]
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def read_gguf(path: Path) -> tuple[Any, Any]:
    """Return config and tokenizer of a GGUF file, fresh copies each time. The file is read once per process."""
    return copy.deepcopy(_read_gguf(path, path.stat().st_mtime_ns))


@lru_cache(maxsize=1)
def _read_gguf(path: Path, modified: int) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoTokenizer

    with reading_gguf(path), tempfile.TemporaryDirectory() as folder:
        write_without_vocabulary(path, Path(folder, path.name))
        config = AutoConfig.from_pretrained(folder, gguf_file=path.name)
        return config, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@contextmanager
def reading_gguf(path: Path) -> Iterator[None]:
    """Say what to do about a file that transformers cannot read, and keep its progress bars off the screen."""
    from .quiet import quiet

    with quiet(), redirect_stderr(io.StringIO()):
        try:
            yield
        except (ValueError, KeyError, NotImplementedError) as error:
            message = f"transformers cannot read {path}: {error}"
            raise TunekitError(message, "use a safetensors copy of the model") from error


def _write_manifest(path: Path, target: Path) -> None:
    files = sorted(file for file in target.rglob("*") if file.is_file())
    for file in files:
        _flush_to_disk(file)
    sizes = {str(file.relative_to(target)): file.stat().st_size for file in files}
    content: dict[str, Any] = {"source": str(path), "format": FORMAT, "files": sizes}
    (target / MANIFEST).write_text(json.dumps(content, indent=1), encoding="utf-8")
    _flush_to_disk(target / MANIFEST)


def _flush_to_disk(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
