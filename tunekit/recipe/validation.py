"""Turn plain options into a typed config; pydantic's errors become problems with their key path."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ..errors import Problem, nearest

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], options: Mapping[str, Any], key: str, problems: list[Problem]) -> Model | None:
    """Make a config from options. What is wrong is added to `problems`, each with its full key path."""
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        problems.extend(explain(error, model, options, key))
        return None


def explain(error: ValidationError, model: type[BaseModel], options: Mapping[str, Any], key: str) -> Iterator[Problem]:
    """The problems in a pydantic error about `options`, in the user's words."""
    details = [(detail, _written(detail, options)) for detail in error.errors(include_url=False)]
    named = [path for detail, path in details if detail["type"] == "literal_error"]
    for detail, path in details:
        if detail["type"] != "literal_error" and path in named and isinstance(detail["input"], str):
            continue  # another branch of the union: a name that is none is to be a name, not a mapping
        yield _problem(detail, ".".join([key, *path] if key else path), model, path)


def _problem(detail: ErrorDetails, where: str, model: type[BaseModel], path: list[str]) -> Problem:
    if detail["type"] == "extra_forbidden":
        known = _fields_at(model, path[:-1])
        close = nearest(path[-1], known)
        remedy = f"did you mean {close!r}?" if close else f"the options are {', '.join(known) or 'none'}"
        return Problem(where, "is not an option", remedy)
    if detail["type"] == "missing":
        return Problem(where, "is missing", "it has no default")
    message = detail["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return Problem(where, f"is {detail['input']!r}: {message}", _meant(detail))


def _meant(detail: ErrorDetails) -> str:
    """The nearest of the names that there are, where a name was to be given."""
    if detail["type"] != "literal_error" or not isinstance(detail["input"], str):
        return ""
    close = nearest(detail["input"], re.findall("'([^']*)'", detail["ctx"]["expected"]))
    return f"did you mean {close!r}?" if close else ""


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """The option names of the config group at `path`."""
    for part in path:
        field = model.model_fields.get(part)
        inner = getattr(field, "annotation", None)
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def _written(detail: ErrorDetails, options: Mapping[str, Any]) -> list[str]:
    """The path that the user wrote: pydantic puts the branch of a union, and `[key]`, into a location too."""
    path: list[str] = []
    value: Any = options
    for part in detail["loc"]:
        inner = _held(value, part)
        if inner is not None:
            value = inner[0]
        elif detail["type"] != "missing" or part != detail["loc"][-1]:
            continue
        path.append(str(part))
    return path


def _held(value: Any, part: str | int) -> tuple[Any] | None:
    """What a mapping or a list holds at this place, if it has it."""
    if isinstance(value, Mapping):
        return (value[part],) if part in value else None
    return (value[part],) if isinstance(value, (list, tuple)) and isinstance(part, int) else None
