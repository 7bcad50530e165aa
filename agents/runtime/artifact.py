"""An exported policy on disk: a folder or zip of three files, read with NumPy alone.

``policy.json`` is the header: schema, observation fields in order, actions, network, fallback,
training run and the checksums of the other two. ``weights.safetensors`` holds the network.
``golden.json`` holds observations with the scores that the training framework gave them.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conserve_gym.actions import KINDS, Actions, actions_of, possible
from conserve_gym.agents.runtime.linear import Linear
from conserve_gym.agents.runtime.mlp import Float32Array, Mlp
from conserve_gym.agents.runtime.scorer import N_CONTEXT, Scorer
from conserve_gym.deployment import Deployment
from conserve_gym.errors import ConServeGymError
from conserve_gym.fleet import Fleet
from conserve_gym.observation import Scaler, field_table, split

SCHEMA = 3
HEADER, WEIGHTS, GOLDEN = "policy.json", "weights.safetensors", "golden.json"
GOLDEN_TOLERANCE = 1e-4
"""Largest difference between a golden score and the one computed here."""

_NETWORKS: dict[str, type[Mlp] | type[Scorer] | type[Linear]] = {
    "mlp": Mlp,
    "scorer": Scorer,
    "linear": Linear,
}


class ArtifactError(ConServeGymError):
    """An exported policy that cannot be used; the message names file and field."""


@dataclass(frozen=True)
class Artifact:
    """An exported policy.

    Attributes:
        name: Name of the policy.
        fleet: Engines that it was trained for.
        action_kind: Set of actions, see ``conserve_gym.actions``.
        offload_above: What joint actions choose from; see ``conserve_gym.placement``.
        deployment: How the GPUs were run in training.
        network: What gives each action a score.
        seen_low: Smallest scaled value of each observation field in training; where any fleet is
            served, those of an engine stand there once.
        seen_high: Largest one.
        preference: How much energy counts, from 0 to 1, unless the user says otherwise; None where
            the policy was trained for one weight.
        header: The whole header.
    """

    name: str
    fleet: Fleet
    action_kind: str
    offload_above: tuple[float, ...]
    deployment: Deployment
    network: Mlp | Scorer | Linear
    seen_low: Float32Array
    seen_high: Float32Array
    preference: float | None
    header: dict[str, Any]

    @property
    def checksum(self) -> str:
        """SHA-256 of the checksums of its files."""
        sums = json.dumps(self.header["sha256"], sort_keys=True)
        return hashlib.sha256(sums.encode()).hexdigest()

    def serves(self, fleet: Fleet) -> bool:
        """Return whether the policy can decide for a fleet."""
        if isinstance(self.network, Mlp):
            return fleet == self.fleet
        return possible(self.action_kind, fleet)

    def seen(self, n_engines: int) -> tuple[Float32Array, Float32Array]:
        """Return the smallest and largest scaled value of each field, for a fleet's size."""
        if isinstance(self.network, Mlp):
            return self.seen_low, self.seen_high
        return _repeated(self.seen_low, n_engines), _repeated(self.seen_high, n_engines)

    def actions(self, fleet: Fleet) -> Actions:
        """Return what the policy's scores stand for on a fleet.

        Raises:
            ValueError: The fleet does not allow such actions.
        """
        return actions_of(self.action_kind, fleet, self.offload_above, self.deployment.may_hold)

    @classmethod
    def load(cls, path: str | Path) -> Artifact:
        """Read an exported policy and check it against its checksums and golden vectors.

        Raises:
            ArtifactError: Something is missing, corrupt or of another observation table.
        """
        path = Path(path)
        try:
            return cls._load(path)
        except ArtifactError:
            raise
        except Exception as error:  # whatever a damaged file provokes is one error
            what = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise ArtifactError(f"{path}: {HEADER} or {GOLDEN} is not ours: {what}") from None

    @classmethod
    def _load(cls, path: Path) -> Artifact:
        header = _json(path, HEADER, _read(path, HEADER))
        contents = {name: _read(path, name) for name in (WEIGHTS, GOLDEN)}
        artifact = cls._from_contents(path, header, contents)
        if header["sha256"][HEADER] != header_checksum(header):
            raise ArtifactError(f"{path}/{HEADER}: a value was changed since the export")
        artifact._verify(path, _json(path, GOLDEN, contents[GOLDEN]))
        return artifact

    @classmethod
    def _from_contents(
        cls, path: Path, header: dict[str, Any], contents: dict[str, bytes]
    ) -> Artifact:
        if header["schema"] != SCHEMA:
            raise ArtifactError(
                f"{path}/{HEADER}: schema={header['schema']!r}, this version reads {SCHEMA}"
            )
        for name in (WEIGHTS, GOLDEN):
            found = hashlib.sha256(contents[name]).hexdigest()
            if header["sha256"][name] != found:
                raise ArtifactError(
                    f"{path}/{name}: SHA-256 is {found}, the header has "
                    f"{header['sha256'][name]}: the file is corrupt or truncated"
                )
        observation = header["observation"]
        _check_fields(path, observation["fields"])
        kind = header["network"]["kind"]
        if kind not in _NETWORKS:
            raise ArtifactError(
                f"{path}/{HEADER}: network.kind={kind!r} is none of {', '.join(_NETWORKS)}"
            )
        tensors = _safetensors(path, contents[WEIGHTS])
        artifact = cls(
            name=header["name"],
            fleet=Fleet.from_json(**observation["fleet"]),
            action_kind=header["actions"]["kind"],
            offload_above=tuple(
                math.inf if tokens is None else float(tokens)
                for tokens in header["actions"]["offload_above"]
            ),
            deployment=Deployment.from_json(header["deployment"]),
            network=_NETWORKS[kind].from_header(header["network"], tensors),
            seen_low=np.array(observation["seen_low"], dtype=np.float32),
            seen_high=np.array(observation["seen_high"], dtype=np.float32),
            preference=header["preference"] and float(header["preference"]["default"]),
            header=header,
        )
        artifact._check_sizes(path)
        return artifact

    def _check_sizes(self, path: Path) -> None:
        """Check that observation, network and actions fit each other."""
        if self.action_kind not in KINDS:
            raise ArtifactError(
                f"{path}/{HEADER}: actions.kind={self.action_kind!r} is none of {', '.join(KINDS)}"
            )
        if isinstance(self.network, Mlp):
            size = Scaler(len(self.fleet.roles)).size
            shown = size + (self.preference is not None)
            self.network.check(shown, len(self.actions(self.fleet).meanings))
        else:
            size = Scaler(1).size
            shown = N_CONTEXT + (self.preference is not None)
            if isinstance(self.network, Scorer) and self.network.context != shown:
                raise ArtifactError(
                    f"{path}/{HEADER}: network.context={self.network.context}, expected {shown}"
                )
        for field in ("seen_low", "seen_high"):
            shape = getattr(self, field).shape
            if shape != (size,):
                raise ArtifactError(
                    f"{path}/{HEADER}: observation.{field} has shape {shape}, expected ({size},)"
                )

    def _verify(self, path: Path, golden: dict[str, Any]) -> None:
        observations = np.array(golden["observations"], dtype=np.float32)
        expected = np.array(golden["scores"], dtype=np.float32)
        if len(observations) != len(expected) or not len(expected):
            raise ArtifactError(
                f"{path}/{GOLDEN}: {len(observations)} observations, {len(expected)} scores"
            )
        if self.preference is not None:
            preferences = np.array(golden["preferences"], dtype=np.float32)
            observations = np.column_stack((preferences, observations))
        if isinstance(self.network, Mlp):
            found = [self.network.scores(observation) for observation in observations]
        else:
            placements = np.array(golden["placements"], dtype=np.float32)
            found = list(map(self.network.scores, observations, placements))
        for row, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
            difference = float(np.abs(ours - theirs).max())
            if not difference <= GOLDEN_TOLERANCE:
                raise ArtifactError(
                    f"{path}/{GOLDEN}: scores of observation {row} differ by {difference:.2g}, "
                    f"more than {GOLDEN_TOLERANCE}"
                )


def _repeated(values: Float32Array, n_engines: int) -> Float32Array:
    """Return values of a fleet from those in which an engine's fields stand once."""
    parts = split(values)
    engines = np.tile(parts["engines"][0], n_engines)
    return np.concatenate([parts["cluster"], parts["conversation"], engines])


def header_checksum(header: dict[str, Any]) -> str:
    """Return the SHA-256 of a header's values, its checksums left out."""
    values = {key: value for key, value in header.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _check_fields(path: Path, fields: list[dict[str, Any]]) -> None:
    """Check that a policy's observation table is the one of this version."""
    ours = field_table()
    for index, (theirs, mine) in enumerate(zip(fields, ours, strict=False)):
        for key in mine:
            if theirs.get(key) != mine[key]:
                raise ArtifactError(
                    f"{path}/{HEADER}: observation field {index}, {key}={theirs.get(key)!r}; "
                    f"this version has {mine[key]!r} ({mine['group']}.{mine['name']}): the policy "
                    "belongs to another observation table"
                )
    if len(fields) != len(ours):
        raise ArtifactError(
            f"{path}/{HEADER}: {len(fields)} observation fields, this version has {len(ours)}: "
            "the policy belongs to another observation table"
        )


def _read(path: Path, name: str) -> bytes:
    try:
        if path.is_dir():
            return (path / name).read_bytes()
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)
    except (OSError, KeyError) as error:
        raise ArtifactError(f"{path}: cannot read {name} ({error})") from None
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise ArtifactError(
            f"{path}: neither a folder nor a whole zip file: {name} ({error})"
        ) from None


def _json(path: Path, name: str, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise ArtifactError(f"{path}/{name}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}/{name}: expected an object, found {type(value).__name__}")
    return value


def _safetensors(path: Path, content: bytes) -> dict[str, Float32Array]:
    """Read float32 tensors: 8 bytes of header length, a JSON header, then raw little-endian data.

    The format is that of https://github.com/huggingface/safetensors; its package is not needed.
    """
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        header.pop("__metadata__", None)
        data = memoryview(content)[8 + length :]
        tensors = {}
        for name, entry in header.items():
            if entry["dtype"] != "F32":
                raise ArtifactError(f"{path}/{WEIGHTS}: {name} has dtype {entry['dtype']}, not F32")
            start, end = entry["data_offsets"]
            if end - start != 4 * math.prod(entry["shape"]):
                raise ArtifactError(f"{path}/{WEIGHTS}: {name} has another size than its shape")
            flat = np.frombuffer(data[start:end], dtype="<f4").astype(np.float32)
            tensors[name] = flat.reshape(entry["shape"])
        return tensors
    except ArtifactError:
        raise
    except Exception as error:  # whatever a damaged file provokes is one error
        raise ArtifactError(f"{path}/{WEIGHTS}: not a safetensors file ({error})") from None
