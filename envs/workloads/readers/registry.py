"""Every format by name, and which of them a file has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from pydantic import ConfigDict, ValidationError, validate_call

from conserve_gym.envs.workloads.conversation import Recording, WorkloadError
from conserve_gym.envs.workloads.limits import Limits
from conserve_gym.envs.workloads.readers import (
    aiperf,
    azure,
    bailian,
    burstgpt,
    conserve_artifact,
    conserve_csv,
    llmservingsim,
    mooncake,
    tracelab,
    weka,
)
from conserve_gym.envs.workloads.readers.source import OnError, Source

_HEAD = 20


class Reader(Protocol):
    """A module that reads one format.

    Attributes:
        FORMAT: Its name.
    """

    FORMAT: str

    def looks_like(self, head: list[str]) -> bool:
        """Return whether these can be the first lines of such a file."""

    @property
    def read(self) -> Callable[..., Iterator[Recording]]:
        """Yields the recordings of a source, with the format's own options."""


def _by_name(*readers: Reader) -> dict[str, Reader]:
    return {reader.FORMAT: reader for reader in readers}


# Another format is one more line here; no file may look like two of them.
READERS: dict[str, Reader] = _by_name(
    conserve_csv,
    conserve_artifact,
    weka,
    azure,
    burstgpt,
    mooncake,
    aiperf,
    tracelab,
    bailian,
    llmservingsim,
)
"""Each format's module by its name."""


def detect(path: Path) -> str:
    """Return the name of the format that a file seems to have.

    A csv file that no reader knows counts as our own, whose errors name the columns that it lacks,
    and so does Parquet.

    Raises:
        WorkloadError: The file cannot be read, or no format fits, or more than one.
    """
    source = Source(path)
    if source.is_parquet:
        return conserve_csv.FORMAT
    with closing(source.lines()) as lines:
        head = [line for _, line in islice(lines, _HEAD)]
    names = [name for name, reader in READERS.items() if reader.looks_like(head)]
    if len(names) == 1:
        return names[0]
    if not names and not (head and head[0].lstrip().startswith(("{", "["))):
        return conserve_csv.FORMAT
    seems = f"looks like {' and '.join(names)}" if names else "has no known format"
    raise WorkloadError(f"{path}: {seems}; format= takes one of {', '.join(READERS)}")


def open_recordings(
    path: Path,
    format: str = "auto",
    on_error: OnError = "stop",
    unknown_gaps: bool = True,
    empty_output_tokens: int | None = None,
    limits: Limits | None = None,
    keys: str = "",
    **options: Any,
) -> tuple[Source, Iterator[Recording]]:
    """Open a file of recordings.

    Args:
        path: The file, plain, packed with gzip or Zstandard, or Parquet.
        format: Name of its format; ``auto`` looks at its first lines.
        on_error: Whether a bad row stops the reading, or its conversation is left out and counted.
        unknown_gaps: Whether a turn after the first may have a gap that nobody knows (NaN).
        empty_output_tokens: What an output of 0 tokens counts as; None refuses empty outputs.
        limits: What is taken; None takes all.
        keys: How the keys of these options begin, for errors: ``workload.`` in a scenario.
        **options: The format's own.

    Returns:
        The source, which counts what is left out while it is read, and its recordings as a stream.

    Raises:
        WorkloadError: There is no such file, format or option.
    """
    source = Source(path, on_error, unknown_gaps, empty_output_tokens, keys)
    name = detect(path) if format == "auto" else format
    if name not in READERS:
        raise WorkloadError(f"format={name}: none of auto, {', '.join(READERS)}")
    limits = limits or Limits()
    if name == conserve_csv.FORMAT:
        # Rows beyond its limits are not looked at, and need not be right. Which conversations are
        # the first is known at the end only if some of them are left out.
        options["limits"] = (
            limits._replace(conversations=math.inf) if on_error == "skip" else limits
        )
    read = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(READERS[name].read)
    try:
        return source, limits.of(read(source, **options))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        option = ".".join(map(str, problem["loc"]))
        raise WorkloadError(
            f"{path} ({name}): {keys}reader_options.{option}={problem['input']!r}: {problem['msg']}"
        ) from None
