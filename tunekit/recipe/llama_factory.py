"""LLaMA-Factory's description of a data set becomes the options of a source.

Its documentation: data/README.md of LLaMA-Factory 0.9.5. Different here: `num_samples` are the first rows, where
LLaMA-Factory draws them at random; and columns that a format knows by name (`input`, `system`) are read where the data
has them, where LLaMA-Factory reads only those that the description names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import Problem, nearest

PLACES = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name")
KEYS = (*PLACES, "formatting", "ranking", "subset", "split", "folder", "num_samples", "columns", "tags")

TURNS = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output", "history": "history"},
    "sharegpt": {"messages": "conversations"},
    "openai": {"messages": "messages"},
}
"""For each `formatting` the columns that hold what is said: LLaMA-Factory's name and ours."""

SHARED = {"system": "system", "tools": "tools", "images": "images"}
PAIR = {"chosen": "chosen", "rejected": "rejected"}
LABEL = {"kto_tag": "label"}
UNREAD = ("videos", "audios")
COLUMNS = (*TURNS["alpaca"], *TURNS["sharegpt"], *SHARED, *PAIR, *LABEL, *UNREAD)

TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
    "observation_tag": "observation",
    "function_tag": "function",
}
"""LLaMA-Factory's names of what is inside a turn, and ours."""


def source_options(entry: Any, folder: Path, where: str, problems: list[Problem]) -> dict[str, Any] | None:
    """Translate one entry of the `dataset_info.json` in `folder`; what is wrong with it is added to `problems`."""
    before = len(problems)
    if not isinstance(entry, Mapping):
        problems.append(Problem(where, f"is {entry!r}, not a data set", 'write {"file_name": "rows.json"}'))
        return None
    given = {str(key): value for key, value in entry.items() if value is not None}
    _check_types(given, where, problems)
    if len(problems) > before:
        return None
    options = {**_place(given, folder, where, problems), **_shape(given, where, problems)}
    if "images" in options.get("columns", {}) and "file_name" in given and "hf_hub_url" not in given:
        options["folder"] = str(folder)
    return options if len(problems) == before else None


def _check_types(entry: Mapping[str, Any], where: str, problems: list[Problem]) -> None:
    _check_keys(entry, KEYS, where, problems)
    for key, value in entry.items():
        if key in ("columns", "tags"):
            _check_names(value, COLUMNS if key == "columns" else tuple(TAGS), f"{where}.{key}", problems)
        elif key == "ranking":
            _require(isinstance(value, bool), value, "true or false", f"{where}.{key}", problems)
        elif key == "num_samples":
            good = isinstance(value, int) and not isinstance(value, bool) and value > 0
            _require(good, value, "a number of 1 or more", f"{where}.{key}", problems)
        elif key == "formatting":
            _require(value in tuple(TURNS), value, f"one of {', '.join(TURNS)}", f"{where}.{key}", problems)
        elif key in KEYS:
            _require(isinstance(value, str) and bool(value), value, "text", f"{where}.{key}", problems)


def _check_keys(entry: Mapping[str, Any], known: tuple[str, ...], where: str, problems: list[Problem]) -> None:
    for key in entry:
        if key not in known:
            close = nearest(str(key), known)
            remedy = f"did you mean {close!r}?" if close else f"the keys are {', '.join(known)}"
            problems.append(Problem(f"{where}.{key}", "is no key of LLaMA-Factory's", remedy))


def _check_names(value: Any, known: tuple[str, ...], where: str, problems: list[Problem]) -> None:
    if not isinstance(value, Mapping):
        problems.append(Problem(where, f"is {value!r}, not a mapping", f'write {{"{known[0]}": "name in the data"}}'))
        return
    _check_keys(value, known, where, problems)
    for key, name in value.items():
        _require(name is None or isinstance(name, str), name, "text", f"{where}.{key}", problems)


def _require(good: bool, value: Any, expected: str, where: str, problems: list[Problem]) -> None:
    if not good:
        problems.append(Problem(where, f"is {value!r}, expected {expected}", "correct it"))


def _place(entry: Mapping[str, Any], folder: Path, where: str, problems: list[Problem]) -> dict[str, Any]:
    """Where the data lies. LLaMA-Factory asks the hub first, too, where an entry names several places."""
    options = {name: entry[key] for key, name in (("split", "split"), ("num_samples", "limit")) if key in entry}
    if "hf_hub_url" in entry:
        hub = {name: entry[name] for name in ("subset", "folder") if name in entry}
        name = entry["hf_hub_url"]
        return {"path": name if "/" in name else f"hf://datasets/{name}", **hub, **options}
    for name in ("subset", "folder"):
        if name in entry:
            problems.append(Problem(f"{where}.{name}", "belongs to a data set on the Hugging Face hub", "leave it out"))
    if "cloud_file_name" in entry:
        return {"path": entry["cloud_file_name"], **options}
    if "file_name" in entry:
        return {"path": str(folder / entry["file_name"]), **options}
    problems.append(_nowhere(entry, where))
    return options


def _nowhere(entry: Mapping[str, Any], where: str) -> Problem:
    remedy = "add `file_name` or `hf_hub_url`"
    place = next((place for place in PLACES if place in entry), None)
    if place is None:
        return Problem(where, "names no place where its data lies", remedy)
    reason = "loading scripts run code" if place == "script_url" else "this hub is not read"
    return Problem(f"{where}.{place}", f"is the only place it names, and {reason}", remedy)


def _shape(entry: Mapping[str, Any], where: str, problems: list[Problem]) -> dict[str, Any]:
    """Its format, columns and tags."""
    formatting = entry.get("formatting", "alpaca")
    columns = {key: name for key, name in entry.get("columns", {}).items() if name is not None}
    tags = {TAGS[key]: name for key, name in entry.get("tags", {}).items() if name is not None}
    ranking, labelled = entry.get("ranking", False), "kto_tag" in columns
    if ranking and labelled:
        problems.append(Problem(where, "has both `ranking` and a `kto_tag`", "keep one of the two"))
    known = {**TURNS[formatting], **SHARED, **(PAIR if ranking else {}), **(LABEL if labelled else {})}
    if ranking:
        known.pop("response", None)
    plain_text = formatting == "alpaca" and not ranking and columns and "response" not in columns
    if plain_text:
        known = {"prompt": "text"}
    for key in columns:
        if key in UNREAD:
            problems.append(Problem(f"{where}.columns.{key}", f"{key} are not read", "leave this data set out"))
        elif key not in known:
            problems.append(_misplaced(key, f"{where}.columns.{key}", formatting, bool(plain_text)))
    if tags and formatting == "alpaca":
        problems.append(
            Problem(f"{where}.tags", "name what is inside turns, which alpaca rows do not have", "leave it out")
        )
    name = "preference" if ranking else "labelled" if labelled else "text" if plain_text else formatting
    renamed = {known[key]: column for key, column in columns.items() if key in known}
    return {"format": name, **({"columns": renamed} if renamed else {}), **({"tags": tags} if tags else {})}


def _misplaced(key: str, where: str, formatting: str, plain_text: bool) -> Problem:
    if plain_text:
        return Problem(where, "goes with a `response`, and none is named", "name the column of the answers: `response`")
    if key in PAIR:
        return Problem(where, "belongs to preferences", "set `ranking` to true, or leave it out")
    return Problem(where, f"means nothing where the formatting is {formatting}", "leave it out")
