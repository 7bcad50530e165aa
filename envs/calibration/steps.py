"""Measured engine steps: what each of them held, and how long it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from conserve_gym.errors import ConServeGymError
from conserve_gym.files import whole

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


class CalibrationError(ConServeGymError):
    """Measurements from which no law can be fitted."""


@dataclass(frozen=True)
class Steps:
    """A table of measured steps, one prompt chunk at most in each; all columns have one length.

    Attributes:
        prompt_tokens: Prompt tokens in the step; 0 in a step of decodes only.
        context_tokens: Cached tokens that they come after.
        sequences: Sequences decoding, of about one length; 0 in a step of prompt tokens only.
        kv_tokens: KV tokens that these read, over all of them.
        ms: Time of the step.
    """

    prompt_tokens: FloatArray
    context_tokens: FloatArray
    sequences: FloatArray
    kv_tokens: FloatArray
    ms: FloatArray

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.ms)

    def where(self, chosen: BoolArray) -> Steps:
        """Return the steps that are chosen."""
        return Steps(*(getattr(self, field.name)[chosen] for field in fields(self)))

    @property
    def of_prompts(self) -> Steps:
        """Steps with prompt tokens only."""
        return self.where((self.prompt_tokens > 0) & (self.sequences == 0))

    @property
    def of_decodes(self) -> Steps:
        """Steps with decodes only."""
        return self.where((self.prompt_tokens == 0) & (self.sequences > 0))

    @property
    def mixed(self) -> Steps:
        """Steps with both."""
        return self.where((self.prompt_tokens > 0) & (self.sequences > 0))

    @classmethod
    def of(
        cls,
        prompt_tokens: npt.ArrayLike,
        context_tokens: npt.ArrayLike,
        sequences: npt.ArrayLike,
        kv_tokens: npt.ArrayLike,
        ms: npt.ArrayLike,
    ) -> Steps:
        """Build a table of columns or single values."""
        columns = np.broadcast_arrays(prompt_tokens, context_tokens, sequences, kv_tokens, ms)
        return cls(*(np.array(column, dtype=np.float64).reshape(-1) for column in columns))

    @classmethod
    def concatenate(cls, tables: Sequence[Steps]) -> Steps:
        """Return all steps of several tables."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(t, name) for t in tables]) for name in names))

    @classmethod
    def read(cls, path: Path) -> Steps:
        """Read a csv file, plain or gzipped, with the attributes as columns.

        Lines that begin with ``#`` are comments, further columns are left alone.

        Raises:
            CalibrationError: A column is missing or a value is not a number from 0 on; the message
                names file, row and column.
        """
        try:
            frame = pd.read_csv(path, comment="#")
        except (ValueError, OSError, EOFError) as error:
            raise CalibrationError(f"{path}: {error}") from None
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in frame]
        if missing:
            raise CalibrationError(f"{path}: no column {', '.join(missing)}")
        columns = []
        for name in names:
            values = pd.to_numeric(frame[name], errors="coerce").to_numpy(np.float64)
            lowest = 0.0 if name != "ms" else np.nextafter(0.0, 1.0)
            wrong = np.flatnonzero(~(np.isfinite(values) & (values >= lowest)))
            if len(wrong):
                row = int(wrong[0])
                raise CalibrationError(
                    f"{path}, row {row + 1}: {name}={frame[name].iloc[row]!r} is not a number "
                    f"{'above' if name == 'ms' else 'from'} 0"
                )
            columns.append(values)
        return cls(*columns)

    def write(self, path: Path, comment: Sequence[str] = ()) -> None:
        """Write the table so that ``read`` reads it, with lines of comment above it."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        with whole(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            file.writelines(f"# {line}\n" for line in comment)
            pd.DataFrame(columns).to_csv(file, index=False, float_format="%.9g")
