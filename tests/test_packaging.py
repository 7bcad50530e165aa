"""The folders at the top of the repository arrive inside the import package `conserve_gym`.

The mapping is declared in pyproject.toml by hand, and a folder left out of it still works in a
checkout. So the declaration is compared with the tree, and a wheel is built, installed and used.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "agents": "conserve_gym.agents",
    "baselines": "conserve_gym.baselines",
    "conf": "conserve_gym.conf",
    "conserve_gym": "conserve_gym",
    "envs": "conserve_gym.envs",
}
BUILT_FROM = (*FOLDERS, "scripts", "tests", "LICENSE", "README.md", "pyproject.toml")

# Runs in a process of its own, in another working directory, with the installed wheel in argv[1].
USE_INSTALLED_WHEEL = """
import pathlib, sys
from hydra import compose, initialize_config_module
import conserve_gym, conserve_gym.envs

with initialize_config_module(config_module="conserve_gym.conf", version_base="1.3"):
    config = compose(config_name="evaluate", return_hydra_config=True)
sources = {source.provider: source.path for source in config.hydra.runtime.config_sources}
assert sources["main"] == "conserve_gym.conf", sources
assert set(config) - {"hydra"}, "the configuration is empty"

target = pathlib.Path(sys.argv[1]).resolve()
for name, module in sorted(sys.modules.items()):
    if name.partition(".")[0] == "conserve_gym" and getattr(module, "__file__", None):
        path = pathlib.Path(module.__file__).resolve()
        assert path.is_relative_to(target), f"{name} comes from {path}"
"""

# Prints where the running environment finds modules, without importing what they import.
FIND_MODULES = """
import importlib.util, json, sys

print(json.dumps({name: importlib.util.find_spec(name).origin for name in sys.argv[1:]}))
"""


def setuptools_table() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    return dict(table["setuptools"])


def packaged_files() -> Iterator[tuple[str, PurePosixPath]]:
    """Every file below the packaged folders: its package, and its path inside the wheel."""
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*")):
            inner = PurePosixPath(path.relative_to(ROOT / folder).as_posix())
            if path.is_dir() or "__pycache__" in inner.parts or inner.name.startswith("."):
                continue
            yield (
                ".".join((package, *inner.parts[:-1])),
                PurePosixPath(package.replace(".", "/"), inner),
            )


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command to its end and return what it printed; its error output on failure."""
    process = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, f"{process.stdout}\n{process.stderr}"
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the sdist built from a copy of the checkout."""
    scratch = tmp_path_factory.mktemp("packaging")
    checkout = scratch / "checkout"
    checkout.mkdir()
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, checkout / name)
        else:
            shutil.copy(ROOT / name, checkout / name)
    run("-m", "build", "--no-isolation", "--outdir", scratch, checkout, cwd=scratch)
    assert len(list(scratch.glob("*.tar.gz"))) == 1
    (built,) = scratch.glob("*.whl")
    return built


def test_every_folder_is_a_declared_package() -> None:
    packages: list[str] = setuptools_table()["packages"]
    assert set(packages) == {package for package, _ in packaged_files()}
    assert packages == sorted(set(packages))


def test_every_package_is_mapped_to_its_folder() -> None:
    mapping = {package: folder for folder, package in FOLDERS.items()}
    assert setuptools_table()["package-dir"] == mapping


def test_every_file_is_a_module_or_declared_package_data() -> None:
    patterns: list[str] = setuptools_table()["package-data"]["*"]
    stray = [
        str(path)
        for _, path in packaged_files()
        if path.suffix != ".py" and not any(fnmatch(path.name, pattern) for pattern in patterns)
    ]
    assert stray == []


def test_wheel_holds_every_file_and_nothing_beside_the_package(wheel: Path) -> None:
    names = [PurePosixPath(name) for name in zipfile.ZipFile(wheel).namelist()]
    metadata = {name for name in names if name.parts[0].endswith(".dist-info")}
    assert set(names) - metadata == {path for _, path in packaged_files()}
    assert any(name.name == "LICENSE" for name in metadata)


def test_installed_wheel_imports_and_composes_its_configuration(
    wheel: Path, tmp_path: Path
) -> None:
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    options = ("--quiet", "--no-deps", "--no-index", "--no-compile", "--target", target)
    run("-m", "pip", "install", *options, wheel, cwd=elsewhere)
    run("-c", USE_INSTALLED_WHEEL, target, cwd=elsewhere, PYTHONPATH=str(target))


def test_running_environment_resolves_the_mapping(tmp_path: Path) -> None:
    distribution = importlib.metadata.distribution("conserve-gym")
    scripts = distribution.entry_points.select(group="console_scripts")
    assert {script.name for script in scripts} == {
        "conserve-benchmark",
        "conserve-train",
        "conserve-evaluate",
        "conserve-export",
        "conserve-calibrate",
        "conserve-validate",
        "conserve-reproduce",
        "conserve-tune",
        "conserve-twin",
        "conserve-sweep",
        "conserve-ablate",
        "conserve-explain",
        "conserve-fetch-traces",
        "conserve-pick-endpoints",
        "conserve-project",
        "conserve-replay",
        "conserve-serve",
        "conserve-workload",
    }
    modules = {*FOLDERS.values(), *(script.module for script in scripts)}
    found: dict[str, str] = json.loads(run("-c", FIND_MODULES, *modules, cwd=tmp_path))

    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        for folder, package in FOLDERS.items():
            assert Path(found[package]).resolve() == ROOT / folder / "__init__.py"
