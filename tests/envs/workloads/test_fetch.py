"""Fetching from a server on this machine: whole, resumed, truncated, tampered with, not at all."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic import ValidationError

from conserve_gym.envs.configuration import ConfigurationError, validated
from conserve_gym.envs.workloads import fetch as module
from conserve_gym.envs.workloads.fetch import SUMS, FetchError, Original, fetch

CONTENT = bytes(range(256)) * 12_000  # three chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Home:
    """What a server has, and how it behaves.

    Attributes:
        content: The file.
        tag: Its ETag; None sends none.
        ranges: Whether it answers with parts.
        stops_after: Bytes after which it hangs up, once; None sends all.
        says_length: Whether it says how long the file is.
        asked: The Range of every request.
    """

    content: bytes = CONTENT
    tag: str | None = '"one"'
    ranges: bool = True
    stops_after: int | None = None
    says_length: bool = True
    asked: list[str | None] = field(default_factory=list)
    address: str = ""


class Handler(BaseHTTPRequestHandler):
    home: Home

    def do_GET(self) -> None:
        home = self.home
        asked = self.headers.get("Range")
        home.asked.append(asked)
        if self.path != "/trace.csv":
            return self.send_error(404)
        begin = 0
        if asked and home.ranges and self.headers.get("If-Range") == home.tag:
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
            if begin >= len(home.content):
                return self.send_error(416)
        self.send_response(206 if begin else 200)
        if begin:
            last = len(home.content) - 1
            self.send_header("Content-Range", f"bytes {begin}-{last}/{last + 1}")
        if home.tag:
            self.send_header("ETag", home.tag)
        if home.says_length:
            self.send_header("Content-Length", str(len(home.content) - begin))
        self.end_headers()
        end = len(home.content)
        if home.stops_after is not None:
            end, home.stops_after = begin + home.stops_after, None
        self.wfile.write(home.content[begin:end])

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    monkeypatch.setenv("no_proxy", "*")
    home = Home()
    handler = type("OfThisHome", (Handler,), {"home": home})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        home.address = f"http://127.0.0.1:{server.server_port}/trace.csv"
        yield home
        server.shutdown()
        thread.join()


def original(home: Home, **changes: Any) -> Original:
    values = dict(says="a trace", address=home.address, licence="MIT", file="trace.csv")
    return Original(**(values | changes))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("says_length", [True, False])
def test_a_file_comes_whole_and_is_verified(home: Home, tmp_path: Path, says_length: bool) -> None:
    home.says_length = says_length
    told: list[tuple[int, int | None]] = []
    known = original(home, sha256=SHA256, size_bytes=len(CONTENT))
    folder = tmp_path / "made" / "for it"
    fetched = fetch(known, folder, lambda *of: told.append(of))
    assert fetched == (folder / "trace.csv", SHA256, True, True)
    assert fetched.path.read_bytes() == CONTENT
    assert (folder / SUMS).read_text() == f"{SHA256}  trace.csv\n"
    assert names(folder) == [SUMS, "trace.csv"]
    total = len(CONTENT) if says_length else None
    assert told[0] == (0, total)
    assert told[-1] == (len(CONTENT), total)
    assert fetch(known, folder) == (folder / "trace.csv", SHA256, True, False)
    assert len(home.asked) == 1


def test_an_unknown_hash_is_written_down_and_then_holds(home: Home, tmp_path: Path) -> None:
    first = fetch(original(home), tmp_path)
    assert (first.sha256, first.verified) == (SHA256, False)
    assert fetch(original(home), tmp_path).verified
    first.path.unlink()
    home.content = home.content[:-1] + b"x"
    with pytest.raises(FetchError, match=rf"must be {SHA256}: it was changed at its home or on"):
        fetch(original(home), tmp_path)
    assert names(tmp_path) == [SUMS]
    home.content = CONTENT
    assert fetch(original(home), tmp_path).verified
    other = original(home, file="other.csv")
    assert not fetch(other, tmp_path).verified
    assert (tmp_path / SUMS).read_text().split() == [SHA256, "other.csv", SHA256, "trace.csv"]


@pytest.mark.parametrize("ranges", [True, False])
def test_what_was_broken_off_goes_on(home: Home, tmp_path: Path, ranges: bool) -> None:
    home.ranges, home.stops_after = ranges, 2_000_000
    with pytest.raises(FetchError, match=r"broken off after 2,000,000 of 3,072,000 bytes"):
        fetch(original(home, sha256=SHA256), tmp_path)
    assert not (tmp_path / "trace.csv").exists()
    told: list[int] = []
    fetched = fetch(original(home, sha256=SHA256), tmp_path, lambda here, _: told.append(here))
    assert fetched.path.read_bytes() == CONTENT
    assert home.asked == [None, "bytes=2000000-"]
    assert told[0] == (2_000_000 if ranges else 0)
    assert names(tmp_path) == [SUMS, "trace.csv"]


def test_it_is_broken_off_more_than_once(home: Home, tmp_path: Path) -> None:
    for _ in range(3):
        home.stops_after = 1_000_000
        with pytest.raises(FetchError, match="broken off"):
            fetch(original(home), tmp_path)
    assert fetch(original(home), tmp_path).sha256 == SHA256
    assert home.asked[1:] == ["bytes=1000000-", "bytes=2000000-", "bytes=3000000-"]


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_without_a_tag_nobody_knows_whether_it_is_the_same_file(
    home: Home, tmp_path: Path, tag: str | None
) -> None:
    home.tag, home.stops_after = tag, 5
    with pytest.raises(FetchError, match="broken off after 5 of"):
        fetch(original(home), tmp_path)
    assert fetch(original(home), tmp_path).sha256 == SHA256
    assert home.asked == [None, None]


def test_another_version_begins_anew(home: Home, tmp_path: Path) -> None:
    home.stops_after = 1_000_000
    with pytest.raises(FetchError, match="broken off"):
        fetch(original(home), tmp_path)
    home.content, home.tag = CONTENT[::-1], '"two"'
    assert fetch(original(home), tmp_path).path.read_bytes() == CONTENT[::-1]


def test_a_part_longer_than_the_file_begins_anew(home: Home, tmp_path: Path) -> None:
    (tmp_path / "trace.csv.partial").write_bytes(CONTENT * 2)
    (tmp_path / "trace.csv.partial.version").write_text('"one"')
    assert fetch(original(home, sha256=SHA256), tmp_path).path.read_bytes() == CONTENT
    assert home.asked == [f"bytes={2 * len(CONTENT)}-", None]


def test_a_part_that_was_tampered_with_is_found_out(home: Home, tmp_path: Path) -> None:
    (tmp_path / "trace.csv.partial").write_bytes(b"tampered")
    (tmp_path / "trace.csv.partial.version").write_text('"one"')
    with pytest.raises(FetchError, match=f"must be {SHA256}"):
        fetch(original(home, sha256=SHA256), tmp_path)
    assert fetch(original(home, sha256=SHA256), tmp_path).path.read_bytes() == CONTENT


def test_a_file_that_was_changed_here_is_found_out(home: Home, tmp_path: Path) -> None:
    fetched = fetch(original(home), tmp_path)
    fetched.path.write_bytes(CONTENT[:-1])
    with pytest.raises(
        FetchError, match=rf"trace.csv: its SHA-256 .* {SHA256}: delete it to fetch"
    ):
        fetch(original(home), tmp_path)


def test_another_length_than_the_list_says_is_refused(home: Home, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="3,072,000 bytes came instead of 3,072,001: it is not"):
        fetch(original(home, size_bytes=len(CONTENT) + 1), tmp_path)
    assert names(tmp_path) == []


def test_what_is_not_there_is_named(home: Home, tmp_path: Path) -> None:
    gone = home.address.replace("trace", "gone")
    with pytest.raises(FetchError, match=rf"{gone}: HTTP 404 Not Found$"):
        fetch(original(home, address=gone), tmp_path)
    with pytest.raises(FetchError, match=r"http://127.0.0.1:9/x: Connection refused$"):
        fetch(original(home, address="http://127.0.0.1:9/x"), tmp_path)
    with pytest.raises(FetchError, match=r"http://nowhere.invalid/x: .*[Nn]ame"):
        fetch(original(home, address="http://nowhere.invalid/x"), tmp_path)
    assert names(tmp_path) == []


def test_a_server_that_says_nothing_is_given_up(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.setattr(module, "_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        with pytest.raises(FetchError, match=f"{address}: timed out"):
            fetch(original(home, address=address), tmp_path)


def test_no_room_is_said_before_and_during(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(1000))
    with pytest.raises(FetchError, match=r"3,072,000 bytes are still to come .* room for 1,000"):
        fetch(original(home), tmp_path)
    monkeypatch.undo()

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    opened = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, mode="r", *rest, **named: (
            Full(path, mode) if mode in ("wb", "ab") else opened(path, mode, *rest, **named)
        ),
    )
    with pytest.raises(FetchError, match=f"{tmp_path}: No space left on device"):
        fetch(original(home), tmp_path)
    monkeypatch.undo()
    assert fetch(original(home), tmp_path).sha256 == SHA256


def test_a_folder_that_cannot_be_is_named(home: Home, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match=f"{tmp_path}/file: File exists"):
        fetch(original(home), tmp_path / "file")
    (tmp_path / SUMS).write_text("nonsense\n")
    with pytest.raises(FetchError, match=f"{SUMS}, line 1: 'nonsense' is not a SHA-256 and a name"):
        fetch(original(home), tmp_path)


def archive(**members: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"repository/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def test_the_recordings_of_an_archive_become_the_lines_of_a_file(
    home: Home, tmp_path: Path
) -> None:
    objects = {"traces/1.json": b'{"a":\n 1}', "traces/2.json": b'{"b": "\\u00e9"}'}
    home.content = archive(**objects, **{"README.json": b"{}", "traces/3.txt": b"x"})
    packed = original(home, file="some.tar.gz", members="*/traces/*.json")
    fetched = fetch(packed, tmp_path)
    assert fetched.path == tmp_path / "some.jsonl.gz"
    lines = gzip.decompress(fetched.path.read_bytes()).decode().splitlines()
    assert [json.loads(line) for line in lines] == [{"a": 1}, {"b": "é"}]
    assert fetch(packed, tmp_path) == (fetched.path, fetched.sha256, True, False)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (archive(**{"README.json": b"{}"}), r"has no member \*/traces/\*"),
        (archive(**{"traces/1": b"{"}), r"cannot be unpacked \(Expecting"),
        (archive(**{"traces/1": b"{}" * 10_000})[:-20], "cannot be unpacked"),
        (b"no archive", "cannot be unpacked"),
    ],
)
def test_an_archive_that_cannot_be_unpacked_is_named(
    home: Home, tmp_path: Path, content: bytes, why: str
) -> None:
    home.content = content
    with pytest.raises(FetchError, match=rf"some\.tar\.gz: {why}"):
        fetch(original(home, file="some.tar.gz", members="*/traces/*"), tmp_path)
    assert "some.jsonl.gz" not in names(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"address": "file:///etc/passwd"},
        {"address": "http:///x"},
        {"file": "../up.csv"},
        {"file": ".hidden"},
        {"sha256": "abc"},
        {"size_bytes": 0},
        {"mirror": "x"},
    ],
)
def test_what_cannot_be_is_refused(home: Home, changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        original(home, **changes)


def test_the_packaged_list_is_one_of_originals() -> None:
    from omegaconf import OmegaConf

    path = Path(module.__file__).parents[2] / "conf" / "fetch_traces.yaml"
    originals = validated(dict[str, Original], OmegaConf.load(path).originals, "originals")
    assert len({one.file for one in originals.values()}) == len(originals) >= 4
    assert all(one.address.startswith("https://") for one in originals.values())
    with pytest.raises(ConfigurationError, match=r"originals.x.says=.*[Ff]ield required"):
        validated(dict[str, Original], OmegaConf.create({"x": {}}), "originals")
