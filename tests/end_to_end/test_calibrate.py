"""Calibration by the real script: from csv files, public figures, and endpoints."""

from __future__ import annotations

import asyncio
import importlib.util
import math
import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from subprocess import CompletedProcess

import hydra
import numpy as np
import pytest
import rack
from commands import SCRIPTS, call, rows, run
from fake_endpoint import (
    MAX_SEQUENCES,
    TOKEN_BUDGET,
    FakeEngine,
    VirtualClient,
    VirtualLoop,
    served,
)
from omegaconf import OmegaConf
from rich.console import Console

from conserve_gym.agents.calibrate import calibrate as command
from conserve_gym.agents.twin import processor, tiny_llama
from conserve_gym.envs.calibration import derive
from conserve_gym.envs.calibration.check import Check, draw
from conserve_gym.envs.calibration.check import run as play
from conserve_gym.envs.calibration.endpoint import Endpoint, Prompts
from conserve_gym.envs.calibration.fit import Laws, fit
from conserve_gym.envs.calibration.measure import Measurement, Plan
from conserve_gym.envs.calibration.steps import Steps
from conserve_gym.envs.configuration import validated
from conserve_gym.envs.serving.hardware import (
    DecodeLaw,
    EngineOverhead,
    Hardware,
    MixedLaw,
    PrefillLaw,
)
from conserve_gym.errors import ConServeGymError

KNOWN = Laws(
    PrefillLaw(0.0, 6.0, 3.5, 60.0, 150.0, 0.0),
    DecodeLaw(0.0, 0.0, 9.0, 500.0, 4.0),
    MixedLaw(16.0),
)
PLAN = (
    f"plan.token_budget={TOKEN_BUDGET}",
    f"plan.max_sequences={MAX_SEQUENCES}",
    "plan.prompt_lengths=[8,32,64,128,192,256]",
    "plan.chunk_lengths=[64,192]",
    "plan.contexts=[64,384]",
    "plan.batch_sizes=[1,2,4]",
    "plan.repeats=2",
    "plan.decode_steps=8",
)
FOR = ("gpu=a40", "model=qwen3_8b", "name=mine", "output=out")
MOST_WAITED_PCT = 20.0  # by then single steps take several times as long as undisturbed


def calibrate(*arguments: str, cwd: Path) -> CompletedProcess[str]:
    return call("calibrate", *FOR, *arguments, cwd=cwd)


def written(folder: Path) -> Hardware:
    return validated(Hardware, OmegaConf.load(folder / "out" / "hardware" / "mine.yaml"))


def hardware() -> Hardware:
    conf = SCRIPTS.parent / "conf"
    gpu = validated(derive.Gpu, OmegaConf.load(conf / "gpu" / "a40.yaml"))
    model = validated(derive.Model, OmegaConf.load(conf / "model" / "qwen3_8b.yaml"))
    no_overhead = EngineOverhead(step_ms=0.0, sequence_us=0.0)
    return replace(derive.hardware(gpu, model), overhead=no_overhead, **KNOWN._asdict())


def table(contexts: tuple[int, ...] = (64, 384, 1500)) -> Steps:
    """Every kind of step, with the times of the known laws."""
    cells = [
        *product((8, 32, 64, 128, 192, 256), (0,), (0,), (0,)),
        *product((64, 192), contexts, (0,), (0,)),
        *((0, 0, b, b * c) for b in (1, 2, 4, 8) for c in contexts),
        *((n, 0, b, b * c) for n in (64, 192) for b in (1, 4) for c in contexts),
    ]
    steps = Steps.of(*zip(*cells, strict=True), 1.0)
    return replace(steps, ms=KNOWN.step_ms(steps))


def test_measured_steps_give_back_the_laws_that_made_them(tmp_path: Path) -> None:
    table().write(tmp_path / "steps.csv", ["a comment"])
    done = calibrate("steps=steps.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = written(tmp_path)
    laws = Laws(found.prefill, found.decode, found.mixed)
    np.testing.assert_allclose(laws.step_ms(table()), table().ms, rtol=2e-3)
    assert "are predicted faster than NVIDIA A40 can be" in done.stdout  # 8B parameters in 10 ms
    assert not found.provenance.derived
    assert found.provenance.holdout_error_pct.keys() == {"prefill", "decode", "mixed"}
    assert max(found.provenance.holdout_error_pct.values()) < 0.5
    errors = rows(tmp_path / "out" / "errors.csv")
    assert {row["phase"] for row in errors} == {"prefill", "decode", "mixed"}
    assert sum(int(row["rows"]) for row in errors if row["group"] == "all") == len(table())
    assert (tmp_path / "out" / "fit.png").read_bytes().startswith(b"\x89PNG")
    again = calibrate("steps=out/steps.csv", "output=again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    names = {p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*.*")}
    assert names == {p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.*")}
    use = done.stdout.split("use it: ")[1].split()
    used = call("evaluate", *use[2:], "workload.conversations=8", "seeds=1", cwd=tmp_path)
    assert used.returncode == 0, used.stderr


def test_public_figures_say_that_they_are_derived_and_train(tmp_path: Path) -> None:
    done = calibrate("gpu.name=Overclocked", "gpu.peak_tflops=200", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nothing was measured" in done.stdout
    found = written(tmp_path)
    assert found.provenance.derived
    assert (found.gpu, found.limits.peak_tflops) == ("Overclocked", 200.0)
    use = done.stdout.split("use it: ")[1].split()
    trained = call(
        "train",
        *use[2:],
        "experiment=quick",
        "workload.conversations=8",
        "agent.n_envs=1",
        "agent.n_steps=8",
        "agent.batch_size=8",
        "total_timesteps=8",
        "run=run",
        cwd=tmp_path,
    )
    assert trained.returncode == 0, trained.stderr
    assert "Overclocked" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize("prompts", ["token_ids", "text"])
def test_an_engine_with_known_steps(prompts: str) -> None:
    says_cached = prompts == "token_ids"
    plan = Plan(
        prompt_lengths=(8, 32, 64, 128, 192, 256),
        chunk_lengths=(64, 192),
        contexts=(64, 384),
        batch_sizes=(1, 2, 4),
        repeats=2,
        decode_steps=8,
        token_budget=TOKEN_BUDGET,
        max_sequences=MAX_SEQUENCES,
    )
    endpoint = Endpoint("", "", None, 1.0, prompts, (1, 10**6), {})  # type: ignore[arg-type]

    async def measure() -> tuple[Measurement, Laws, Check]:
        engine = FakeEngine(hardware())
        running = asyncio.create_task(engine.run())
        client = VirtualClient(engine, says_cached)
        found = Measurement(client, plan, Prompts(endpoint, seed=0))  # type: ignore[arg-type]
        await found.run(lambda: None)
        laws = fit(found.steps)
        assert found.overhead is not None
        overhead = EngineOverhead(0.0, 0.0, request_ms=found.overhead.ms)
        tier = replace(hardware(), overhead=overhead, **laws._asdict())
        arrivals = draw(tier, plan, 24, seed=0)
        checked = await play(
            client,  # type: ignore[arg-type]
            Prompts(endpoint, seed=1),
            arrivals,
            tier,
            plan,
            lambda: None,
        )
        running.cancel()
        return found, laws, checked

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        found, laws, checked = runner.run(measure())
    assert found.overhead is not None
    assert found.overhead.ms == pytest.approx(3.0, rel=0.05)
    assert not found.notes
    assert len(found.steps.of_prompts) == 12 + 8
    assert len(found.steps.of_decodes) == 12
    assert len(found.steps.mixed) == 24
    known = table()
    np.testing.assert_allclose(laws.step_ms(known), known.ms, rtol=0.03)
    assert laws.prefill.token_us == pytest.approx(60.0, rel=0.03)
    assert laws.prefill.attention_ns == pytest.approx(150.0, rel=0.03)
    assert laws.decode.sequence_us == pytest.approx(500.0, rel=0.03)
    assert laws.decode.kv_us == pytest.approx(4.0, rel=0.03)
    for metric, _, _, _, error in checked.rows():
        assert error == pytest.approx(0.0, abs=5.0), metric


def test_an_endpoint_over_http(tmp_path: Path) -> None:
    with served(hardware()) as url:
        done = calibrate(f"endpoint.url={url}", "check_requests=4", *PLAN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "client, network and" in done.stdout
    found = written(tmp_path)
    assert found.provenance.holdout_error_pct.keys() == {"prefill", "decode", "mixed"}
    assert len(Steps.read(tmp_path / "out" / "steps.csv")) == 20 + 12 + 24
    checked = rows(tmp_path / "out" / "check.csv")
    assert {row["metric"] for row in checked} == {"ttft_ms", "tbt_ms"}
    assert all(math.isfinite(float(row["error_pct"])) for row in checked)
    assert len(rows(tmp_path / "out" / "check_requests.csv")) == 4


@pytest.mark.parametrize(
    ("failure", "options", "says"),
    [
        ("http", {}, "HTTP 500"),
        ("dies", {}, "/v1/completions: "),
        ("empty", {}, "streamed no token"),
        ("silent", {}, "silent for 1 s"),
        ("", {"tokens_an_event": 4}, "in 4 events"),
    ],
)
def test_an_endpoint_that_fails_leaves_what_was_measured(
    tmp_path: Path, failure: str, options: dict[str, int], says: str
) -> None:
    fails_after = 30 if failure else None
    with served(hardware(), fails_after=fails_after, failure=failure, **options) as url:
        done = calibrate(f"endpoint.url={url}", "endpoint.timeout_s=1", *PLAN, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    if failure:
        assert "measured so far are kept in out/steps.csv" in done.stderr
        assert len(Steps.read(tmp_path / "out" / "steps.csv")) == 8
    else:
        assert not (tmp_path / "out").exists()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "file").write_text("")
    head = "prompt_tokens,context_tokens,sequences,kv_tokens"
    (tmp_path / "no_ms.csv").write_text(f"{head}\n1,0,0,0\n")
    (tmp_path / "short.csv").write_text(f"{head},ms\n1,0,0,0,2\n9,0,0,0,3\n0,0,1,9,3\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["steps=absent.csv"], "absent.csv"),
        (["steps=no_ms.csv"], "no column ms"),
        (["steps=short.csv"], "prompts of 2 lengths"),
        (["steps=file", "endpoint.url=http://127.0.0.1:9"], "two sources"),
        (["endpoint.url=http://127.0.0.1:9"], "127.0.0.1:9"),
        (["endpoint.url=nonsense"], "nonsense"),
        (["endpoint.url=x", "plan.prompt_lengths=[1,2]"], "at least 5 are needed"),
        (["endpoint.url=x", "plan.token_budget=100"], "plan.token_budget=100"),
        (["endpoint.url=x", "endpoint.prompts=images"], "endpoint.prompts='images'"),
        (["endpoint.url=x", "+plan.tokens=3"], "plan.tokens"),
        (["check_requests=-1"], "check_requests=-1"),
        (["gpu.peak_tflops=0"], "gpu.peak_tflops=0"),
        (["+model.depth=3"], "model.depth"),
        (["output=file"], "output=file is a file"),
        (["name=a/b"], "a/b"),
        (["name=h100_qwen3_8b"], "h100_qwen3_8b"),
    ],
)
def test_wrong_input_is_named_and_leaves_nothing(
    folder: Path, arguments: list[str], says: str
) -> None:
    before = set(folder.rglob("*"))
    with hydra.initialize_config_module("conserve_gym.conf", version_base="1.3"):
        config = hydra.compose("calibrate", [*FOR, *arguments])
    with pytest.raises(ConServeGymError, match=re.escape(says)):
        command(config, Console(quiet=True))
    assert set(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["steps=no_ms.csv"], "error: no_ms.csv: no column ms\n"),
        (["output=file"], "error: output=file is a file\n"),
        (["endpoint.url=http://127.0.0.1:9"], "error: http://127.0.0.1:9/v1/completions: "),
    ],
)
def test_wrong_input_is_one_line_on_the_screen(
    folder: Path, arguments: list[str], says: str
) -> None:
    done = calibrate(*arguments, cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith(says)
    assert len(done.stderr.splitlines()) == 1


def test_a_gpu_is_needed(tmp_path: Path) -> None:
    done = run("calibrate", "model=qwen3_8b", "output=out", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        "error: gpu is needed: gpu=...; --help lists them\n",
    )
    assert "a100_80gb" in call("calibrate", "--help", cwd=tmp_path).stdout


@pytest.mark.skipif(
    not (importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("gguf")),
    reason="needs xllamacpp and gguf, which the extra dev has where there are wheels",
)
@pytest.mark.slow  # beside other tests its engine seldom has the processor to itself
def test_a_real_engine(tmp_path: Path) -> None:
    """llama.cpp: what is predicted is of the right size, where nobody takes its processor away."""
    first, last = tiny_llama.TOKEN_IDS
    with rack.tiny_engine(tmp_path).served(tmp_path / "server.log") as (engine, url):
        before = processor.read([engine.pid])
        done = run(
            "calibrate",
            "gpu=cpu_core",
            "model=tiny_llama",
            "name=mine",
            "output=out",
            f"endpoint.url={url}",
            f"endpoint.token_ids=[{first},{last}]",
            f"plan.token_budget={rack.TOKEN_BUDGET}",
            f"plan.max_sequences={rack.MAX_SEQUENCES}",
            "plan.prompt_lengths=[16,64,128,256,384,500]",
            "plan.chunk_lengths=[64,448]",
            "plan.contexts=[64,512]",
            "plan.batch_sizes=[1,2,4]",
            "plan.repeats=3",  # a median of two would follow whatever disturbs one of them
            "plan.decode_steps=8",
            "check_requests=8",
            cwd=tmp_path,
        )
        waited_pct = (processor.read([engine.pid]) - before).waited_pct
    assert done.returncode == 0, done.stderr
    found = written(tmp_path)
    assert (found.gpu, found.provenance.derived) == ("CPU core", False)
    errors = found.provenance.holdout_error_pct.values()
    assert all(map(math.isfinite, errors))
    assert all(float(row["rows"]) > 0 for row in rows(tmp_path / "out" / "errors.csv"))
    requests = rows(tmp_path / "out" / "check_requests.csv")
    if waited_pct > MOST_WAITED_PCT:
        pytest.skip(f"the engine waited {waited_pct:.0f} % of its time for a processor")
    assert max(errors) < 100
    measured = [float(row["measured_ttft_ms"]) for row in requests]
    predicted = [float(row["predicted_ttft_ms"]) for row in requests]
    # Others may take the processor at any time, but not a factor of five for long.
    assert 0.2 < np.median(predicted) / np.median(measured) < 5.0
    assert np.corrcoef(np.log(measured), np.log(predicted))[0, 1] > 0.5
