"""Writes a hardware tier as the YAML file that cluster configurations take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from conserve_gym.envs.serving.hardware import Hardware
from conserve_gym.files import whole

# Of coefficients that were fitted; public figures keep more.
_DIGITS = 4
_PUBLIC = ("limits", "figures")


def write(path: Path, hardware: Hardware, comment: Sequence[str]) -> None:
    """Write a tier; the file appears whole or not at all.

    Args:
        path: File to write.
        hardware: The tier; its coefficients are rounded to 4 digits.
        comment: Lines that go above it.
    """
    sections = {
        key: _rounded(value, 9 if key in _PUBLIC else _DIGITS)
        for key, value in asdict(hardware).items()
    }
    text = OmegaConf.to_yaml(OmegaConf.create(sections))
    with whole(path) as partial:
        partial.write_text("".join(f"# {line}".rstrip() + "\n" for line in comment) + text, "utf-8")


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item, digits) for key, item in value.items()}
    if isinstance(value, float):
        rounded = float(f"{round(value, 6):.{digits}g}")  # a search may leave 1e-14 of nothing
        return int(rounded) if rounded.is_integer() else rounded
    return value
