"""Conversations whose rows stand among those of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from conserve_gym.envs.workloads.readers.source import RowError, Source

S = TypeVar("S")


def named(source: Source, line: int, field: str, value: object) -> str:
    """Return the name of a conversation: a text that is not blank, or a whole number.

    Raises:
        RowError: It is neither.
    """
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise source.error(line, field, value, "names no conversation")


class OpenSessions(Generic[S]):
    """The conversations of a file, all of them open until it ends: any may have another row.

    Args:
        source: The file.
        begin: Makes a conversation from its name when its first row comes.
    """

    def __init__(self, source: Source, begin: Callable[[str], S]) -> None:
        """Begin with none."""
        self._source = source
        self._begin = begin
        self._open: dict[str, S] = {}
        self._left_out: set[str] = set()

    def get(self, name: str) -> S | None:
        """Return the conversation of that name; None if it is left out."""
        if name in self._left_out:
            return None
        if name not in self._open:
            self._open[name] = self._begin(name)
        return self._open[name]

    def leave_out(self, name: str, error: RowError) -> None:
        """Leave a conversation out because of a bad row.

        Raises:
            RowError: Reading shall stop at bad rows.
        """
        self._source.skip(error)
        self._left_out.add(name)
        self._open.pop(name, None)

    def __iter__(self) -> Iterator[S]:
        """Yield those that are not left out, in the order of their first rows."""
        return iter(self._open.values())
