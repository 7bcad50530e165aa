"""Fetches public recordings from their homes: resumed where it stopped, and verified."""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import json
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Annotated, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass

from conserve_gym.envs.fields import STRICT
from conserve_gym.errors import ConServeGymError
from conserve_gym.files import whole

SUMS = "SHA256SUMS"
"""What was fetched into a folder, as ``sha256sum --check`` reads it."""

_CHUNK = 1 << 20
_TIMEOUT_S = 60.0

Progress = Callable[[int, int | None], None]
"""Is told how many bytes are there, and of how many if the server says."""


class FetchError(ConServeGymError):
    """A recording that cannot be fetched; the message names address or file, and why."""


@dataclass(frozen=True, config=STRICT)
class Original:
    """A recording at its public home.

    Attributes:
        says: What was recorded.
        address: Where it is, of one commit or release for ever.
        licence: Under which.
        file: What it is called here.
        members: Of an archive, the files (a pattern) that are recordings, a JSON object each; they
            become the lines of one file.
        size_bytes: Its size; None if not known yet.
        sha256: Its SHA-256; None if not known yet, and then the first fetch writes down what it
            was, and later ones must be the same.
    """

    says: str
    address: Annotated[str, Field(pattern=r"^https?://[^/\s]+/\S*$")]
    licence: str
    file: Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")]
    members: str | None = None
    size_bytes: PositiveInt | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None


class Fetched(NamedTuple):
    """A recording that is here.

    Attributes:
        path: The file that readers take.
        sha256: Of what was fetched.
        verified: Whether that was known before; else it has now been written down.
        came: Whether it had to be fetched; else it was here already.
    """

    path: Path
    sha256: str
    verified: bool
    came: bool


def fetch(original: Original, folder: Path, progress: Progress | None = None) -> Fetched:
    """Fetch a recording, unless it is here already; what is broken off goes on the next time.

    Args:
        original: Which one.
        folder: Where to; made if it is not there.
        progress: Is told how far it is.

    Raises:
        FetchError: It cannot be had, is not what it should be, or there is no room for it.
    """
    path = folder / original.file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sums = _sums(folder)
        expected = original.sha256 or sums.get(original.file)
        came = not path.is_file()
        if came:
            sha256 = _fetched(original, path, expected, progress or _silently)
        else:
            sha256 = _sha256(path)
            _verify(str(path), sha256, expected, "delete it to fetch it again")
        if sums.get(original.file) != sha256:
            with whole(folder / SUMS) as partial:
                lines = sorted((sums | {original.file: sha256}).items())
                partial.write_text("".join(f"{sha}  {name}\n" for name, sha in lines))
        readable = path if original.members is None else _joined(path, original.members)
    except OSError as error:
        where = error.filename or folder
        raise FetchError(f"{where}: {error.strerror or error}") from None
    return Fetched(readable, sha256, expected is not None, came)


def _fetched(original: Original, path: Path, expected: str | None, progress: Progress) -> str:
    partial = path.with_name(path.name + ".partial")
    version = path.with_name(path.name + ".partial.version")
    _download(original, partial, version, progress)
    size, sha256 = partial.stat().st_size, _sha256(partial)
    try:
        if original.size_bytes not in (None, size):
            raise FetchError(
                f"{original.address}: {size:,} bytes came instead of {original.size_bytes:,}: it "
                "is not the file that this list means"
            )
        _verify(original.address, sha256, expected, "it was changed at its home or on its way")
    except FetchError:
        partial.unlink()  # there is nothing in it to go on from
        raise
    finally:
        version.unlink(missing_ok=True)
    partial.replace(path)
    return sha256


def _download(original: Original, partial: Path, version: Path, progress: Progress) -> None:
    begun = partial.stat().st_size if partial.is_file() and version.is_file() else 0
    headers = {"User-Agent": "conserve-gym", "Accept-Encoding": "identity"}
    if begun:
        # The server sends the whole file if it is another one by now.
        headers |= {"Range": f"bytes={begun}-", "If-Range": version.read_text()}
    try:
        response = urlopen(Request(original.address, headers=headers), timeout=_TIMEOUT_S)
    except HTTPError as error:
        error.close()
        if error.code == 416 and begun:  # it has no more than is here, so that is not its start
            partial.unlink()
            return _download(original, partial, version, progress)
        raise FetchError(f"{original.address}: HTTP {error.code} {error.reason}") from None
    except (URLError, HTTPException, OSError) as error:
        raise FetchError(f"{original.address}: {_reason(error)}") from None
    with response:
        if response.status != 206:
            begun = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {begun}-"):
            raise FetchError(f"{original.address}: another part came than was asked for")
        total = _total(response, begun)
        free = shutil.disk_usage(partial.parent).free
        if total is not None and total - begun > free:
            raise FetchError(
                f"{partial.parent}: {total - begun:,} bytes are still to come and there is room "
                f"for {free:,}"
            )
        if begun == 0:
            version.unlink(missing_ok=True)
            if identity := _identity(response):
                version.write_text(identity)
        _write(original.address, response, partial, begun, total, progress)


def _write(
    address: str,
    response: HTTPResponse,
    partial: Path,
    begun: int,
    total: int | None,
    progress: Progress,
) -> None:
    here, why = begun, ""
    with partial.open("ab" if begun else "wb") as file:
        progress(here, total)
        while True:
            try:
                chunk = response.read(_CHUNK)
            except (HTTPException, OSError) as error:
                why = f" ({_reason(error)})"
                break
            if not chunk:
                break
            file.write(chunk)
            here += len(chunk)
            progress(here, total)
    if why or total not in (None, here):
        of = "" if total is None else f" of {total:,}"
        raise FetchError(f"{address}: broken off after {here:,}{of} bytes{why}; start it again")


def _total(response: HTTPResponse, begun: int) -> int | None:
    length = response.headers.get("Content-Length", "")
    return begun + int(length) if re.fullmatch(r"\d{1,18}", length) else None


def _identity(response: HTTPResponse) -> str | None:
    """Return what tells a file from a later one of its address; weak tags do not."""
    tag: str | None = response.headers.get("ETag")
    if tag and not tag.startswith("W/"):
        return tag
    changed: str | None = response.headers.get("Last-Modified")
    return changed


def _reason(error: Exception) -> str:
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return str(reason) or type(reason).__name__


def _verify(what: str, sha256: str, expected: str | None, why: str) -> None:
    if expected not in (None, sha256):
        raise FetchError(f"{what}: its SHA-256 is {sha256} and must be {expected}: {why}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that was fetched into a folder."""
    path = folder / SUMS
    if not path.is_file():
        return {}
    sums = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        found = re.fullmatch(r"([0-9a-f]{64})  (\S+)", line)
        if found is None:
            raise FetchError(f"{path}, line {number}: {line[:80]!r} is not a SHA-256 and a name")
        sums[found[2]] = found[1]
    return sums


def _joined(archive: Path, members: str) -> Path:
    """Return a file with the JSON objects of an archive's members, one a line, in their order."""
    path = archive.with_name(f"{archive.name.partition('.')[0]}.jsonl.gz")
    if path.is_file():
        return path
    count = 0
    try:
        with (
            tarfile.open(archive) as packed,
            whole(path) as partial,
            gzip.open(partial, "wt", encoding="utf-8", compresslevel=6) as lines,
        ):
            for member in packed:
                file = packed.extractfile(member) if member.isfile() else None
                if file is not None and fnmatch.fnmatchcase(member.name, members):
                    lines.write(json.dumps(json.load(file), separators=(",", ":")) + "\n")
                    count += 1
            if not count:
                raise FetchError(f"{archive}: has no member {members}")
    except (tarfile.TarError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise FetchError(f"{archive}: cannot be unpacked ({error})") from None
    return path


def _silently(here: int, total: int | None) -> None:
    """Tell nobody."""
