"""The exported policy: agreement with the training framework, replay, fallbacks, bad files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from conserve_gym.agents import export as export_module
from conserve_gym.agents.evaluation import play
from conserve_gym.agents.learned import LearnedPolicy
from conserve_gym.agents.networks.exported import scores as framework_scores
from conserve_gym.agents.networks.placement_view import view
from conserve_gym.agents.networks.scorer import Scorer as TrainedScorer
from conserve_gym.agents.policies import OtherFleetError, resolve
from conserve_gym.agents.runtime import mlp as mlp_module
from conserve_gym.agents.runtime import scorer as scorer_module
from conserve_gym.agents.runtime.artifact import Artifact, ArtifactError, _safetensors
from conserve_gym.agents.runtime.linear import Linear
from conserve_gym.agents.runtime.scheduler import Scheduler, replay
from conserve_gym.envs.configuration import ConfigurationError, load_scenario
from conserve_gym.estimates import TABLE_COLUMNS
from conserve_gym.fleet import Fleet, Role
from conserve_gym.ledger import Ledger
from conserve_gym.observation import FIELDS, Observation
from conserve_gym.placement import Placement, as_table, candidates

SCENARIO = ["workload.conversations=60", "arrivals.rate=1.6"]


def test_the_runtime_imports_numpy_alone() -> None:
    script = (
        "import sys, conserve_gym.agents.runtime.scheduler\n"
        "heavy = {'torch', 'gymnasium', 'simpy', 'hydra', 'omegaconf', 'pydantic', 'scipy', "
        "'matplotlib', 'stable_baselines3', 'safetensors', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'loaded {sorted(heavy)}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_simulation_imports_neither_pandas_nor_scipy() -> None:
    script = (
        "import sys, gymnasium, conserve_gym.envs\n"
        "env = gymnasium.make('conserve_gym/ConversationPlacement-v0',\n"
        "                     scenario=['workload.conversations=2'])\n"
        "env.reset(seed=0)\n"
        "while not env.step(1)[2]: pass\n"
        "import conserve_gym.agents.evaluation, conserve_gym.agents.policies\n"
        "heavy = {'pandas', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'loaded {sorted(heavy)}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_torch_stays_out_of_everything_but_training() -> None:
    script = (
        "import sys\n"
        "import conserve_gym.envs.placement_env, conserve_gym.baselines.registry\n"
        "import conserve_gym.agents.evaluation, conserve_gym.agents.report\n"
        "import conserve_gym.agents.policies, conserve_gym.agents.cli\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_runtime_and_training_framework_choose_alike_on_10000_observations(
    trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    learned = LearnedPolicy(run)
    if learned.network == "linear":
        pytest.skip("the training framework is the runtime's own network")
    rng = np.random.default_rng(0)
    observations = rng.random((10_000, learned.scaler.size), dtype=np.float32)
    n_actions = len(learned.actions.meanings)
    shown, placements = observations, None
    if learned.network == "scorer":
        placements = some_placements(learned, rng)
        shown = np.stack([view(*pair) for pair in zip(observations, placements, strict=True)])
    # After a few steps of training one action may win everywhere, and agreement would say little:
    # spread the network's scores, and centre them.
    torch.manual_seed(0)
    with torch.no_grad():
        network = what_scores(learned)
        if isinstance(network, TrainedScorer):
            for weight in network.parameters():
                weight.normal_(std=0.2)
            network.row.weight *= 0.1  # else some estimate or offload_above wins everywhere
            scores = framework_scores(learned.model, shown, n_actions)
            colocated = placements[..., 0] == placements[..., 1]
            ahead = scores[colocated].mean() - scores[~colocated].mean()
            network.score.bias[network.score.out_features // 2 :] -= ahead
        else:
            network.weight.normal_()
            scores = framework_scores(learned.model, shown, n_actions)
            network.bias -= torch.from_numpy(scores.mean(axis=0))
    learned.model.save(run / "model.zip")
    export_module.export(run, run / "policy")
    runtime = Artifact.load(run / "policy")

    masks = rng.random((10_000, n_actions)) < 0.7
    masks[np.arange(10_000), rng.integers(0, n_actions, 10_000)] = True
    if learned.config.environment == "conversation":
        masks[:] = True
        theirs = learned.model.predict(shown, deterministic=True)[0]
    else:
        theirs = learned.model.predict(shown, deterministic=True, action_masks=masks)[0]
    arguments = (observations,) if placements is None else (observations, placements)
    masked = np.where(masks, list(map(runtime.network.scores, *arguments)), -np.inf)
    ours = masked.argmax(axis=1)
    assert (np.bincount(ours, minlength=n_actions) > 250).all(), "every action must be chosen"
    best_two = np.sort(masked, axis=1)[:, -2:]
    tied = best_two[:, 1] - best_two[:, 0] < 1e-5  # sums in another order may swap these
    assert tied.sum() < 10
    np.testing.assert_array_equal(ours[~tied], theirs[~tied])


def what_scores(learned: LearnedPolicy) -> torch.nn.Linear | TrainedScorer:
    """Return the scorer, or the last layer of a perceptron."""
    policy = learned.model.policy
    if hasattr(policy, "quantile_net"):
        return policy.quantile_net.quantile_net
    if hasattr(policy, "q_net"):
        return policy.q_net.q_net[-1]
    return getattr(policy.mlp_extractor, "scorer", policy.action_net)


def some_placements(learned: LearnedPolicy, rng: np.random.Generator) -> np.ndarray:
    """Return 10,000 tables of placements: the static one, or any two."""
    if learned.config.environment == "joint":
        static = as_table(candidates(learned.fleet, (np.inf, 512.0)))
        table = np.empty((10_000, len(static), TABLE_COLUMNS), dtype=np.float32)
        table[..., :3] = static
        table[..., 3:] = rng.normal(size=table[..., 3:].shape)
        return table
    to = rng.integers(1, 4, 10_000)
    table = rng.normal(size=(10_000, 2, TABLE_COLUMNS)).astype(np.float32)
    table[..., :3] = 1.0
    table[:, 0, 0] = table[:, 0, 1] = table[:, 1, 1] = to
    table[:, 1, 0] = 0
    return table


def test_both_play_an_episode_alike(trained: Path, exported: Path) -> None:
    scenario = load_scenario(SCENARIO)
    scheduler = Scheduler.load(exported)
    ours = play(scenario, scheduler, 0)
    theirs = play(scenario, LearnedPolicy(trained), 0)
    if ours.metrics["fallback_pct"] == 0.0:
        assert ours.ledger.digest() == theirs.ledger.digest()
    else:
        assert scheduler.fallbacks > 0


def test_replaying_a_ledger_gives_the_decisions_that_were_taken(
    exported: Path, tmp_path: Path
) -> None:
    scenario = load_scenario(SCENARIO)
    scheduler = Scheduler.load(exported)
    played = play(scenario, scheduler, 1)
    played.ledger.save(tmp_path / "ledger.jsonl")
    recorded = Ledger.load(tmp_path / "ledger.jsonl")
    fleet = scenario.cluster.fleet(scheduler.deployment)
    decisions = list(replay(recorded, fleet, Scheduler.load(exported)))
    assert len(decisions) == 60
    for placed, decision in decisions:
        assert decision.placement == placed[3:]


def observation_of(exported: Path) -> tuple[Scheduler, Observation]:
    """Return a scheduler and an observation inside what its training saw."""
    scheduler = Scheduler.load(exported)
    assert scheduler.artifact is not None
    seen: list[Observation] = []

    class Spy(Scheduler):
        def decide(self, observation: Observation):
            seen.append(observation)
            return super().decide(observation)

    play(
        load_scenario(["workload.conversations=16", "arrivals.rate=1.0"]),
        Spy(scheduler.artifact),
        3,
    )
    inside = [one for one in seen if not scheduler.decision(one).fallback]
    assert inside
    return scheduler, inside[-1]


def test_falls_back_to_the_rule_and_says_why(exported: Path) -> None:
    scheduler, observation = observation_of(exported)
    scheduler.reset(0)
    raw = observation.raw
    before = raw.copy()

    raw[0] = np.nan
    decision = scheduler.decision(observation)
    assert "cluster.arrivals_recent is not a number" in decision.fallback
    assert decision.placement.disaggregates and decision.action == -1

    raw[:] = before
    observation.engine_field("ttft_recent")[3] = 1e9
    assert "engines[3].ttft_recent" in scheduler.decision(observation).fallback

    raw[:] = before
    assert scheduler.decision(observation).fallback == ""


def test_a_perceptron_does_not_serve_another_fleet_and_says_so(exported: Path) -> None:
    scheduler, observation = observation_of(exported)
    scheduler.reset(0)
    if not isinstance(scheduler.artifact.network, mlp_module.Mlp):
        pytest.skip("it serves any fleet")
    other = load_scenario(["cluster=a40_4mixed"]).cluster.fleet(scheduler.deployment)
    strange = Observation(
        observation.time,
        0,
        0,
        other,
        observation.raw,
        observation.free_kv_tokens,
        observation.open_to,
    )
    assert "engines" in scheduler.decision(strange).fallback
    assert scheduler.fallbacks == 1


def test_a_router_without_a_door_decides_when_every_decoder_is_full(exported: Path) -> None:
    scheduler, observation = observation_of(exported)
    full = replace(
        observation,
        free_kv_tokens=np.array([0.0, -10.0, -30.0, -20.0]),
        open_to=np.zeros(4, dtype=bool),
    )
    assert scheduler.decision(full).placement.decode_at in full.fleet.decoders
    most_free = full.fleet.decoders[0]
    rule = Scheduler(None, "no policy").decision(full).placement
    assert rule.decode_at == most_free
    assert rule.prefill_at != most_free


def test_a_damaged_zip_is_never_another_error(exported: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "policy"), "zip", exported))
    whole = archive.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.integers(0, len(whole), 300):
        broken = bytearray(whole)
        broken[position] ^= 1 << int(rng.integers(8))
        archive.write_bytes(broken)
        try:
            Artifact.load(archive)
        except ArtifactError:
            refused += 1
    assert refused > 250  # a few bits of a zip mean nothing


def damaged(exported: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "policy"
    shutil.copytree(exported, copy)
    return copy


def test_a_zip_loads_like_the_folder(exported: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "policy"), "zip", exported)
    one, other = Artifact.load(exported), Artifact.load(archive)
    scheduler, observation = observation_of(exported)
    np.testing.assert_array_equal(
        scheduler.decision(observation).scores, Scheduler(other).decision(observation).scores
    )
    assert one.header == other.header
    whole = Path(archive).read_bytes()
    Path(archive).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="whole zip"):
        Artifact.load(archive)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(ArtifactError, match=r"policy\.json"):
        Artifact.load(tmp_path / "empty.zip")


@pytest.mark.parametrize("name", ["policy.json", "weights.safetensors", "golden.json"])
def test_a_missing_corrupt_or_truncated_file_is_one_clear_error(
    exported: Path, tmp_path: Path, name: str
) -> None:
    copy = damaged(exported, tmp_path)
    whole = (copy / name).read_bytes()
    for content in (whole[:-9], whole[: len(whole) // 3], b"", bytes([whole[0] ^ 1]) + whole[1:]):
        (copy / name).write_bytes(content)
        with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
            Artifact.load(copy)
    (copy / name).unlink()
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        Artifact.load(copy)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda h: h.update(schema=99), "schema=99"),
        (lambda h: h.pop("network"), "no field 'network'"),
        (lambda h: h["network"].update(kind="oracle"), "network.kind='oracle'"),
        (lambda h: h["actions"].pop("offload_above"), "no field 'offload_above'"),
        (lambda h: h["observation"]["fields"][3].update(unit="ms"), "field 3, unit='ms'"),
        (lambda h: h["observation"]["fields"].pop(), "another observation table"),
        (lambda h: h["observation"]["fleet"].update(roles=["prefill"] * 4), "no engine decodes"),
        (lambda h: h["actions"].update(kind="telepathy"), "telepathy"),
        (lambda h: h["observation"].update(seen_low=[0.0]), "seen_low"),
        (lambda h: h["observation"]["seen_low"].__setitem__(5, 0.5), "changed since the export"),
        (lambda h: h.update(network=3), "policy.json"),
        (lambda h: h.update(observation=[]), "policy.json"),
        (lambda h: h.update(deployment={"reservation": "all"}), "policy.json"),
    ],
)
def test_a_header_that_is_not_ours_names_the_field(
    exported: Path, tmp_path: Path, change, says: str
) -> None:
    copy = damaged(exported, tmp_path)
    header = json.loads((copy / "policy.json").read_text())
    change(header)
    (copy / "policy.json").write_text(json.dumps(header))
    with pytest.raises(ArtifactError, match=says):
        Scheduler.load(copy)


def test_a_network_that_does_not_fit_names_the_weight(exported: Path, tmp_path: Path) -> None:
    copy = damaged(exported, tmp_path)
    header = json.loads((copy / "policy.json").read_text())
    network = header["network"]
    if network["kind"] == "linear":
        network["columns"].reverse()
        says = "network.columns="
    elif network["kind"] == "mlp":
        network["layers"][0]["activation"] = "swish"
        says = "activation='swish'"
    else:
        network["hidden"] += 1
        says = r"prefiller\.weight has shape \(64, 64\), expected \(65, 64\)"
    (copy / "policy.json").write_text(json.dumps(header))
    with pytest.raises(ArtifactError, match=says):
        Artifact.load(copy)


def test_golden_vectors_catch_another_evaluator(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(mlp_module.ACTIVATIONS, "tanh", np.sin)
    monkeypatch.setitem(mlp_module.ACTIVATIONS, "relu", np.abs)
    monkeypatch.setattr(scorer_module, "_relu", np.abs)
    monkeypatch.setattr(Linear, "scores", lambda self, _, rows: rows[:, 3:] @ np.abs(self.weights))
    with pytest.raises(ArtifactError, match=r"golden\.json: scores of observation"):
        Artifact.load(exported)


def test_without_strictness_the_rule_takes_over(
    exported: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = damaged(exported, tmp_path)
    (copy / "weights.safetensors").write_bytes(b"")
    scheduler = Scheduler.load(copy, strict=False)
    assert "weights.safetensors" in caplog.text
    _, observation = observation_of(exported)
    decision = scheduler.decision(observation)
    assert decision.placement.disaggregates
    assert "weights.safetensors" in decision.fallback


def test_our_reader_reads_what_the_safetensors_package_wrote(exported: Path) -> None:
    theirs = load_file(exported / "weights.safetensors")
    ours = _safetensors(exported, (exported / "weights.safetensors").read_bytes())
    assert theirs.keys() == ours.keys()
    for name, weight in theirs.items():
        np.testing.assert_array_equal(weight, ours[name])


def test_the_header_documents_every_field(exported: Path) -> None:
    header = json.loads((exported / "policy.json").read_text())
    fields = header["observation"]["fields"]
    assert [(f["group"], f["name"]) for f in fields] == [(f.group, f.name) for f in FIELDS]
    assert all(
        {"unit", "low", "high", "scale", "missing", "staleness_s"} <= f.keys() for f in fields
    )
    assert {"fallback", "training", "actions", "sha256", "deployment"} <= header.keys()
    assert not any(path.suffix in (".pkl", ".pt", ".zip") for path in exported.iterdir())


def test_export_replaces_an_export_and_nothing_else(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "policy"
    export_module.export(trained, target)
    export_module.export(trained, target)
    assert {path.name for path in tmp_path.iterdir()} == {"policy"}
    (target / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="not an exported policy"):
        export_module.export(trained, target)
    assert (target / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("cluster", ["a40_2p2d", "a40_1p7d", "a40_4mixed"])
def test_a_scorer_plays_on_other_fleets_as_the_training_framework_does(
    trained: Path, exported: Path, cluster: str
) -> None:
    scenario = load_scenario([*SCENARIO, f"cluster={cluster}"])
    if not trained.name.endswith(("scorer", "linear")):
        for path in (trained, exported):
            with pytest.raises(OtherFleetError, match="was trained for engines"):
                resolve(str(path), scenario.cluster)
        return
    scheduler = resolve(str(exported), scenario.cluster)
    learned = resolve(str(trained), scenario.cluster)
    assert isinstance(scheduler, Scheduler) and isinstance(learned, LearnedPolicy)
    assert scheduler.artifact is not None
    # Nothing is outside of what training saw, so that the network decides every time.
    everything = replace(
        scheduler.artifact,
        seen_low=np.zeros_like(scheduler.artifact.seen_low),
        seen_high=np.ones_like(scheduler.artifact.seen_high),
    )
    beside = _Beside(everything, learned)
    ours = play(scenario, beside, 0)
    assert ours.metrics["fallback_pct"] == 0.0
    assert beside.ties < 0.1 * beside.decisions


class _Beside(Scheduler):
    """Checks every decision against the training framework's.

    Engines that are alike score alike, and then the frameworks' rounding decides between them.
    """

    def __init__(self, artifact: Artifact, learned: LearnedPolicy) -> None:
        super().__init__(artifact)
        self._learned = learned
        self.ties = 0

    def decide(self, observation: Observation) -> Placement:
        ours, theirs = self.decision(observation), self._learned.decide(observation)
        if theirs != ours.placement:
            other = self.action_of(observation, theirs)
            assert other is not None
            assert ours.scores[other] == pytest.approx(ours.scores[ours.action], abs=1e-6)
            self.ties += 1
        return ours.placement


def test_a_policy_serves_no_fleet_that_lacks_its_actions(exported: Path) -> None:
    artifact = Artifact.load(exported)
    serves_any = exported.parent.name.endswith(("scorer", "linear"))
    assert (artifact.header["observation"]["serves"] == "any fleet") is serves_any
    decoders = Fleet((Role.DECODE, Role.DECODE), (308_448, 308_448))
    assert artifact.serves(artifact.fleet)
    assert artifact.serves(decoders) is (exported.parent.name in ("joint_scorer", "joint_linear"))
