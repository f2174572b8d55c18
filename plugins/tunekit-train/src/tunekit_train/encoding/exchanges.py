"""A conversation as exchanges: a question of the user and what follows, up to the next question."""

from __future__ import annotations

from dataclasses import dataclass

from .script import Messages


@dataclass(frozen=True)
class Exchanges:
    """The messages of a conversation by index: the `opening` system turns, and the `groups` after them."""

    opening: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, messages: Messages) -> Exchanges:
        """Part a conversation. Turns of the user that follow each other belong together."""
        roles = [message.role for message in messages]
        start = next((index for index, role in enumerate(roles) if role != "system"), len(roles))
        groups: list[list[int]] = []
        for index in range(start, len(roles)):
            if not groups or (roles[index] == "user" and roles[index - 1] != "user"):
                groups.append([])
            groups[-1].append(index)
        return cls(tuple(range(start)), tuple(map(tuple, groups)))

    def kept(self, first: int, last: int) -> list[int]:
        """The messages of the groups [first, last), behind the opening ones."""
        return [*self.opening, *(index for group in self.groups[first:last] for index in group)]

    def holding(self, index: int) -> int:
        """The group that a message belongs to; 0 for an opening one."""
        return next((place for place, group in enumerate(self.groups) if index in group), 0)
