"""What a result needs to be checked elsewhere: command, revision, versions and caveats."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from conserve_gym.agents.multirun import command
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.files import whole

_PACKAGES = ("conserve-gym", "gymnasium", "numpy", "simpy", "stable-baselines3", "torch")


def provenance(cluster: ClusterSpec) -> dict[str, Any]:
    """Return what a result on a cluster was made from.

    Command line, git revision, versions of Python and the packages that matter, and what of the
    cluster's hardware was not measured.
    """
    return {
        "command": command(),
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "packages": packages(),
        "caveats": list(cluster.caveats),
    }


def write_json(path: Path, value: Any) -> None:
    """Write JSON; the file appears whole or not at all."""
    with whole(path) as partial:
        partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def packages() -> dict[str, str | None]:
    """Return the versions of the packages that matter; None for one that is not installed."""
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_revision() -> str | None:
    """Return the checkout's revision; None without git.

    Where its files differ, a plus and a digest of the differences follow.
    """
    root = Path(__file__).resolve().parents[1]
    try:
        top, revision, changes = (
            subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
            ).stdout.strip()
            for arguments in (
                ["rev-parse", "--show-toplevel"],
                ["rev-parse", "HEAD"],
                ["diff", "HEAD"],  # what a user adds is no difference
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    if Path(top) != root:
        return None  # installed inside somebody else's checkout
    if not changes:
        return revision
    return f"{revision}+{hashlib.sha256(changes.encode()).hexdigest()[:12]}"
