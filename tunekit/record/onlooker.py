"""The record as the other processes of a run see it: the first process writes it, they read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..calls import CallRecord
from ..values import Account, Event, Report, StagePlan, StageResult
from .record import Record, Status


class Onlooker(Record):
    """A record that is read and never written."""

    def set_status(self, status: Status, message: str = "") -> None:
        """The first process does."""

    def finish_stage(self, stage: StagePlan, result: StageResult) -> None:
        """The first process does."""

    def note(self, **facts: Any) -> None:
        """The first process does."""

    def event(self, event: Event, index: int = 0) -> None:
        """The first process does."""

    def call(self, call: CallRecord) -> None:
        """The first process does."""

    def warn(self, message: str) -> None:
        """The first process does."""

    def data(self, stage: str, account: Account) -> None:
        """The first process does."""

    def reports(self, reports: Mapping[str, Report]) -> None:
        """The first process does."""
