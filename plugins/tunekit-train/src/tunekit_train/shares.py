"""Rows of one run of the model that several needs share."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Shares:
    """Rows of one result of the model that several needs share: each asks at positions announced before."""

    def __init__(self, announced: Iterable[Tensor | None]) -> None:
        self._requests: list[Tensor] = []
        self._left: list[int] = []
        self._parts: list[Tensor] = []
        for positions in announced:
            if positions is None:
                continue
            at = self._find(positions)
            if at is None:
                self._requests.append(positions)
                self._left.append(1)
            else:
                self._left[at] += 1

    @property
    def positions(self) -> Tensor | None:
        """All announced positions, one request after the other; None where nothing was announced."""
        if len(self._requests) < 2:
            return self._requests[0] if self._requests else None
        return torch.cat(self._requests)

    def expect(self, positions: Tensor) -> bool:
        """Whether a run for all would give these; it gives each once."""
        return not self._parts and self._find(positions) is not None

    def hold(self, positions: Tensor) -> bool:
        """Whether these have been computed and not been taken by all who announced them."""
        at = self._find(positions) if self._parts else None
        return at is not None and self._left[at] > 0

    def fill(self, rows: Tensor) -> None:
        """Take the result of the run for all."""
        if self._requests:
            lengths = [len(request) for request in self._requests]
            self._parts = [rows] if len(lengths) == 1 else list(torch.split(rows, lengths))

    def take(self, positions: Tensor) -> Tensor:
        """The rows at these positions: a copy, and the rows themselves for the last who asks."""
        at = self._find(positions)
        assert at is not None
        self._left[at] -= 1
        return self._parts[at].clone() if self._left[at] else self._parts[at]

    def _find(self, positions: Tensor) -> int | None:
        for at, request in enumerate(self._requests):
            if request is positions or torch.equal(request, positions):
                return at
        return None
