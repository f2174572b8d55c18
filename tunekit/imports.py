"""What modules remember of imports that failed: the exception, and through its traceback all that was in use then."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def freeing_failed_imports() -> Iterator[None]:
    """Keep modules that are first imported here from holding on to whoever was computing.

    A library that tries an optional one often keeps the ImportError in a global, to raise it later. The traceback holds
    the frames of all callers with what they had in hand: the model, and in a notebook's function the finished run, for
    as long as the process lives. GPTQModel does so, which PEFT imports while it wraps a model. The exceptions stay what
    they are, without the traceback.
    """
    before, handled = set(sys.modules), list(_chain(sys.exc_info()[1]))
    try:
        yield
    finally:
        for name in sys.modules.keys() - before:
            for value in list(getattr(sys.modules.get(name), "__dict__", {}).values()):
                if issubclass(type(value), ImportError):  # some values warn when they are asked
                    _free(value, handled)


def _free(error: BaseException, handled: list[BaseException]) -> None:
    """Take the traceback off an exception and those that led to it; what the caller is handling is cut off instead."""
    for each in _chain(error, handled):
        each.__traceback__ = None
        if any(each.__context__ is other for other in handled):
            each.__context__ = None


def _chain(error: BaseException | None, stop: Sequence[BaseException] = ()) -> Iterator[BaseException]:
    """An exception, and what it came of, as far as none of those at which to stop."""
    waiting, seen = [error], {id(each) for each in stop}
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__cause__, each.__context__]
