"""Tables in Parquet files, as the texts that a csv file would have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from conserve_gym.envs.workloads.conversation import WorkloadError

_MAGIC = b"PAR1"
_BATCH = 16_384


def is_parquet(path: Path) -> bool:
    """Return whether a file begins as Parquet does."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False  # who reads it will say so


def rows(
    path: Path, columns: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield the named columns of every row, with its number from 1; few rows are held at a time.

    Args:
        path: The file.
        columns: Those that it must have.
        optional: Further ones; blank where the file has none.

    Raises:
        WorkloadError: A column is missing, twice there, or neither text nor numbers; the file
            cannot be read; or pyarrow is missing.
    """
    try:
        import pyarrow
        from pyarrow import compute, parquet
    except ImportError:
        raise WorkloadError(
            f"{path}: Parquet needs pyarrow: pip install 'conserve-gym[parquet]'"
        ) from None
    number = 0
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            if missing := [name for name in columns if name not in names]:
                raise WorkloadError(f"{path}: no column {', '.join(missing)}")
            wanted = [name for name in (*columns, *optional) if name in names]
            if twice := [name for name in wanted if names.count(name) > 1]:
                raise WorkloadError(f"{path}: two columns {', '.join(twice)}")
            for batch in file.iter_batches(_BATCH, columns=wanted):
                cells = []
                for name in (*columns, *optional):
                    if name not in names:
                        cells.append([""] * batch.num_rows)
                        continue
                    column = batch.column(name)
                    try:
                        texts = column.cast(pyarrow.string())
                    except pyarrow.ArrowNotImplementedError:
                        why = f"column {name} has {column.type}: neither text nor numbers"
                        raise WorkloadError(f"{path}: {why}") from None
                    cells.append(compute.fill_null(texts, "").to_pylist())
                for number, row in enumerate(zip(*cells, strict=True), start=number + 1):  # noqa: B020
                    yield number, row
            if number != file.metadata.num_rows:
                rows = f"{number:,} rows instead of {file.metadata.num_rows:,}"
                raise WorkloadError(f"{path}: cannot be read ({rows})")
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise WorkloadError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
