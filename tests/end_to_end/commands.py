"""The project's commands as users give them: in processes of their own, and without."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import os
import runpy
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

SCRIPTS = Path(__file__).parents[2] / "scripts"
COLUMNS = "250"  # so that no line is broken


def command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, str(SCRIPTS / f"{script}.py"), *arguments]


def run(script: str, *arguments: str, cwd: Path, **environment: str) -> CompletedProcess[str]:
    """Run a script in a process of its own."""
    return subprocess.run(
        command(script, *arguments),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "COLUMNS": COLUMNS, **environment},
    )


def call(script: str, *arguments: str, cwd: Path) -> CompletedProcess[str]:
    """Run a script in this process, which need not import everything again."""
    said, errors = io.StringIO(), io.StringIO()
    log = logging.getLogger()
    handlers, level = list(log.handlers), log.level
    code: str | int | None = 0
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(errors),
        patch.dict(os.environ, COLUMNS=COLUMNS),
        patch.object(sys, "argv", command(script, *arguments)[1:]),
    ):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            code = end.code
        finally:
            log.handlers[:], log.level = handlers, level
    assert code is None or isinstance(code, int)
    return CompletedProcess(
        command(script, *arguments), code or 0, said.getvalue(), errors.getvalue()
    )


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
