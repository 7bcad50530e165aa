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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from conserve_gym.actions import KINDS, Actions, actions_of
from conserve_gym.deployment import Deployment
from conserve_gym.errors import ConServeGymError
from conserve_gym.fleet import Fleet
from conserve_gym.observation import Scaler, field_table

SCHEMA = 2
HEADER, WEIGHTS, GOLDEN = "policy.json", "weights.safetensors", "golden.json"
GOLDEN_TOLERANCE = 1e-4
"""Largest difference between a golden score and the one computed here."""

Float32Array = npt.NDArray[np.float32]
_ACTIVATIONS: dict[str, Callable[[Float32Array], Float32Array]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, np.float32(0.0)),
    "linear": lambda x: x,
}


class ArtifactError(ConServeGymError):
    """An exported policy that cannot be used; the message names file and field."""


@dataclass(frozen=True)
class Layer:
    """One dense layer: activation(weight @ x + bias)."""

    weight: Float32Array
    bias: Float32Array
    activation: str


@dataclass(frozen=True)
class Artifact:
    """An exported policy.

    Attributes:
        name: Name of the policy.
        fleet: Engines that it was trained for.
        action_kind: Set of actions, see ``conserve_gym.actions``.
        offload_above: What joint actions choose from; see ``conserve_gym.placement``.
        deployment: How the GPUs were run in training.
        layers: The network, from scaled observation to one score an action.
        seen_low: Smallest scaled value of each observation field in training.
        seen_high: Largest one.
        header: The whole header.
    """

    name: str
    fleet: Fleet
    action_kind: str
    offload_above: tuple[float, ...]
    deployment: Deployment
    layers: tuple[Layer, ...]
    seen_low: Float32Array
    seen_high: Float32Array
    header: dict[str, Any]

    def scores(self, scaled: Float32Array) -> Float32Array:
        """Return one score an action for a scaled observation, shape (fields,) -> (actions,)."""
        values = scaled
        for layer in self.layers:
            values = layer.weight @ values
            values += layer.bias
            values = _ACTIVATIONS[layer.activation](values)
        return values

    def actions(self, fleet: Fleet) -> Actions:
        """Return what the policy's scores stand for on a fleet.

        Raises:
            ValueError: The fleet does not allow such actions.
        """
        return actions_of(self.action_kind, fleet, self.offload_above)

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
        tensors = _safetensors(path, contents[WEIGHTS])
        layers = tuple(
            Layer(tensors[layer["weight"]], tensors[layer["bias"]], layer["activation"])
            for layer in header["network"]
        )
        for layer in layers:
            if layer.activation not in _ACTIVATIONS:
                raise ArtifactError(
                    f"{path}/{HEADER}: activation={layer.activation!r} is none of "
                    f"{', '.join(_ACTIVATIONS)}"
                )
        artifact = cls(
            name=header["name"],
            fleet=Fleet.from_json(**observation["fleet"]),
            action_kind=header["actions"]["kind"],
            offload_above=tuple(
                math.inf if tokens is None else float(tokens)
                for tokens in header["actions"]["offload_above"]
            ),
            deployment=Deployment.from_json(header["deployment"]),
            layers=layers,
            seen_low=np.array(observation["seen_low"], dtype=np.float32),
            seen_high=np.array(observation["seen_high"], dtype=np.float32),
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
        size = Scaler(len(self.fleet.roles)).size
        actions = len(self.actions(self.fleet).meanings)
        for field in ("seen_low", "seen_high"):
            shape = getattr(self, field).shape
            if shape != (size,):
                raise ArtifactError(
                    f"{path}/{HEADER}: observation.{field} has shape {shape}, expected ({size},)"
                )
        width = size
        for index, layer in enumerate(self.layers):
            if layer.weight.ndim != 2 or layer.weight.shape != (layer.bias.size, width):
                raise ArtifactError(
                    f"{path}/{HEADER}: network[{index}] has a weight of shape "
                    f"{layer.weight.shape}, expected ({layer.bias.size}, {width})"
                )
            width = layer.bias.size
        if width != actions:
            raise ArtifactError(
                f"{path}/{HEADER}: the network gives {width} scores for {actions} actions"
            )

    def _verify(self, path: Path, golden: dict[str, Any]) -> None:
        observations = np.array(golden["observations"], dtype=np.float32)
        expected = np.array(golden["scores"], dtype=np.float32)
        if len(observations) != len(expected) or not len(expected):
            raise ArtifactError(
                f"{path}/{GOLDEN}: {len(observations)} observations, {len(expected)} scores"
            )
        for row, (observation, scores) in enumerate(zip(observations, expected, strict=True)):
            difference = float(np.abs(self.scores(observation) - scores).max())
            if not difference <= GOLDEN_TOLERANCE:
                raise ArtifactError(
                    f"{path}/{GOLDEN}: scores of observation {row} differ by {difference:.2g}, "
                    f"more than {GOLDEN_TOLERANCE}"
                )


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
