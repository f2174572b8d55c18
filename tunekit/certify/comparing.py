"""Two runs of one recipe, bit by bit: the order of the data, metrics, states of checkpoints, and weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ..record import Record, read_json
from .certificate import Part

TIMED = re.compile(r"(^|_)(seconds|time|runtime|flos_per|per_second)($|_)|^peak_memory_bytes$|^matrix_(share|rate)$")
"""Names of values that measure time or memory, which differ from run to run."""
STATES = {
    "optimiser": re.compile(r"^(optimizer|scheduler|scaler).*\.(pt|bin)$"),
    "random numbers": re.compile(r"^rng_state.*\.pth$"),
    "weights in checkpoints": re.compile(r"\.safetensors$"),
    "other state": re.compile(r"\.(pt|json)$"),
}
"""What the files of a checkpoint hold, by the first name that fits; what fits none describes and decides nothing."""
UNCOMPARED = re.compile(r"^(training_args\.bin|README\.md|tokenizer.*|special_tokens_map\.json|chat_template.*)$")


def compare_runs(left: Path, right: Path) -> Iterator[Part]:
    """All that should be the same, stage by stage."""
    records = Record.open(left), Record.open(right)
    stages = [record.finished_stages() for record in records]
    if len(stages[0]) != len(stages[1]):
        yield Part("run", "stages", len(stages[0]), f"{len(stages[0])} finished in one, {len(stages[1])} in the other")
    for first, second in zip(*stages, strict=False):
        title = f"{first['index'] + 1} {first['name']}"
        orders = [stage["facts"].get("data_order") for stage in (first, second)]
        if orders[0] is not None:
            yield Part(title, "data order", int(first["facts"].get("micro_batches", 1)), _said(difference(*orders)))
        lines = [[line for line in record.metrics if line["index"] == first["index"]] for record in records]
        yield Part(title, "metrics", len(lines[0]), _metrics(*lines))
        yield from _files(title, *(record.stage_folder(first["index"], first["name"]) for record in records))
        told, other = ({"metrics": stage["metrics"], "facts": stage["facts"]} for stage in (first, second))
        yield Part(title, "results", len(first["metrics"]) + len(first["facts"]), _said(difference(told, other)))


def difference(left: Any, right: Any, where: str = "") -> str | None:
    """Where two values differ first, bit by bit, or None; what measures time is not looked at."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return _of_mappings(left, right, where)
    if _is_sequence(left) and _is_sequence(right):
        if len(left) != len(right):
            return f"{where}: {len(left)} values and {len(right)}"
        found = (difference(a, b, f"{where}[{at}]") for at, (a, b) in enumerate(zip(left, right, strict=True)))
        return next((each for each in found if each is not None), None)
    if _is_array(left) and _is_array(right):
        return _of_arrays(left, right, where)
    if type(left) is type(right) and (left == right or (left != left and right != right)):
        return None
    return f"{where}: {left!r} and {right!r}"[:300]


def _of_mappings(left: Mapping[Any, Any], right: Mapping[Any, Any], where: str) -> str | None:
    names = {name for name in (*left, *right) if not (isinstance(name, str) and TIMED.search(name))}
    for name in [*[each for each in left if each in names], *[each for each in right if each not in left]]:
        if name not in names:
            continue
        place = f"{where}.{name}" if where else str(name)
        if (name in left) != (name in right):
            return f"{place}: only in {'the uninterrupted run' if name in left else 'the resumed one'}"
        if (found := difference(left[name], right[name], place)) is not None:
            return found
    return None


def _of_arrays(left: Any, right: Any, where: str) -> str | None:
    torch = import_module("torch")
    first, second = (each if torch.is_tensor(each) else torch.from_numpy(each) for each in (left, right))
    if first.dtype != second.dtype or first.shape != second.shape:
        return f"{where}: {first.dtype} {list(first.shape)} and {second.dtype} {list(second.shape)}"
    bits = [each.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for each in (first, second)]
    if torch.equal(*bits):
        return None
    count = int((first != second).sum())
    largest = float((first.double() - second.double()).abs().max())
    return f"{where}: {count:,} of {first.numel():,} numbers, by {largest:.3g} at most"


def _metrics(left: Sequence[Mapping[str, Any]], right: Sequence[Mapping[str, Any]]) -> str:
    for first, second in zip(left, right, strict=False):
        if (found := difference(first, second)) is not None:
            return f"step {first['step']}, {first['kind']}: {found}"
    return "" if len(left) == len(right) else f"{len(left)} lines and {len(right)}"


def _files(title: str, left: Path, right: Path) -> Iterator[Part]:
    """The states of checkpoints, one part for each kind, then what the stage has left."""
    steps = sorted((path.name for path in (left / "checkpoints").glob("step-*")), key=lambda name: int(name[5:]))
    kinds: dict[str, list[str]] = {}
    for step in steps:
        for path in sorted((left / "checkpoints" / step).rglob("*")):
            if path.is_file() and not UNCOMPARED.match(path.name):
                kind = next((name for name, known in STATES.items() if known.search(path.name)), None)
                if kind is not None:
                    kinds.setdefault(kind, []).append(str(path.relative_to(left)))
    for kind in STATES:
        yield _part(title, kind, kinds.get(kind, []), left, right)
    saved = [path for name in ("adapter", "model") for path in sorted((left / name).rglob("*.safetensors"))]
    yield _part(title, "weights", [str(path.relative_to(left)) for path in saved], left, right)


def _part(title: str, what: str, names: Sequence[str], left: Path, right: Path) -> Part:
    found = (_of_files(left / name, right / name, name) for name in names)
    return Part(title, what, len(names), next((each for each in found if each), ""))


def _of_files(left: Path, right: Path, name: str) -> str:
    if not right.is_file():
        return f"{name}: only in the uninterrupted run"
    if left.read_bytes() == right.read_bytes():
        return ""
    return _said(difference(_read(left), _read(right), name))


def _read(path: Path) -> Any:
    """What a file holds. Both were written by the runs that are compared, so pickled ones are read as they are."""
    if path.suffix == ".json":
        return read_json(path)
    if path.suffix == ".safetensors":
        return import_module("safetensors.torch").load_file(path)
    return import_module("torch").load(path, weights_only=False)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape") and hasattr(value, "reshape")


def _said(found: str | None) -> str:
    return found or ""
