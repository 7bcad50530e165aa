"""A headless Chromium that opens a page, runs its scripts, and tells what stands there then."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

needed = pytest.mark.skipif(
    CHROMIUM is None, reason="needs a headless browser on the path: chromium or google-chrome"
)

_EMPTY = {"meta", "link", "img", "br", "input"}


class Dom(HTMLParser):
    """What a page shows.

    Attributes:
        said: Text of every element with an identity, in words one blank apart.
        rows: Of every table with an identity: text of each body row's cells by their heading.
        tags: Every element's name.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.said: dict[str, str] = {}
        self.rows: dict[str, list[dict[str, str]]] = {}
        self.tags: list[str] = []
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in _EMPTY:
            self._open.append((tag, dict(attrs)))
        if (table := self._table) and tag == "tr":
            self.rows.setdefault(table, []).append({})

    def handle_endtag(self, tag: str) -> None:
        if tag not in _EMPTY:
            assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, attributes in self._open:
            if identity := attributes.get("id"):
                self.said[identity] = " ".join([self.said.get(identity, ""), *data.split()]).strip()
            if (heading := attributes.get("data-heading")) and (table := self._table):
                row = self.rows[table][-1]
                row[heading] = " ".join([row.get(heading, ""), *data.split()]).strip()

    @property
    def _table(self) -> str | None:
        """Identity of the table whose body is open."""
        names = [tag for tag, _ in self._open]
        if "tbody" not in names:
            return None
        return self._open[names.index("table")][1].get("id")


def dom(url: str, folder: Path) -> Dom:
    """Open a page in a browser that begins anew."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--virtual-time-budget=3000",
            f"--user-data-dir={folder / 'profile'}",
            "--dump-dom",
            url,
        ],
        capture_output=True,
        text=True,
        timeout=300,  # seconds; a machine that is busy with other things needs most of it
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return Dom(done.stdout)
