"""Finds out whether an exported policy on disk has changed."""

from __future__ import annotations

from pathlib import Path

Signature = tuple[tuple[str, int, int, int], ...]


class PolicyFile:
    """An exported policy's place on disk.

    Args:
        path: Folder or zip; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        """Remember what is there now."""
        self.path = path
        self._seen = self._signature()

    def changed(self) -> bool:
        """Return whether anything there differs from the last time that this was asked."""
        now = self._signature()
        changed = now != self._seen
        self._seen = now
        return changed

    def _signature(self) -> Signature:
        paths = sorted(self.path.iterdir()) if self.path.is_dir() else [self.path]
        found = []
        for path in paths:
            try:
                stat = path.stat()
            except OSError:  # it went while we looked
                continue
            found.append((path.name, stat.st_ino, stat.st_mtime_ns, stat.st_size))
        return tuple(found)
