"""A check of the serving model, and what checks are held against."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, TypeVar

from omegaconf import OmegaConf

from conserve_gym import conf
from conserve_gym.envs.configuration import validated
from conserve_gym.envs.serving.hardware import Hardware

assert conf.__file__
_CONF = Path(conf.__file__).parent

Figures = TypeVar("Figures")

CONSERVE = "github.com/jerryding95/conserve at 2a8c3bc, Apache-2.0, 2026-06-10"
GRID = "github.com/eicchen/conserve at 4ab277d, Apache-2.0, 2026-07-01"
SIM = "github.com/casys-kaist/LLMServingSim at 5daddb21, MIT, 2026-08-21"
AIC = "aiconfigurator-core 0.12.0, Apache-2.0, 2026-09"

# The A40's cost of a cached token is an author's constant, not a row of the table.
A40_SCAN_US = 0.95
# KV tokens that fit beside Llama-3.1-8B on 96 GB; what a step reads beyond cannot happen.
RTX_POOL = 530_000


class Check(NamedTuple):
    """One line of the report.

    Attributes:
        name: What is checked.
        value: What came out.
        limit: What it may be at most, or at least; None where it is only told.
        unit: Unit of both.
        source: What it is held against.
        at_least: Whether the limit is a lower one.
    """

    name: str
    value: float
    limit: float | None
    unit: str
    source: str
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the value keeps the limit."""
        if self.limit is None:
            return True
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def tier(name: str) -> Hardware:
    """Return a packaged hardware tier."""
    return validated(Hardware, OmegaConf.load(_CONF / "hardware" / f"{name}.yaml"))


def tiers() -> dict[str, Hardware]:
    """Return every packaged hardware tier by name."""
    return {path.stem: tier(path.stem) for path in sorted((_CONF / "hardware").glob("*.yaml"))}


def public(group: str, name: str, kind: type[Figures]) -> Figures:
    """Return the packaged public figures of a GPU or a model."""
    return validated(kind, OmegaConf.load(_CONF / group / f"{name}.yaml"))
