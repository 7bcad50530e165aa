"""Explains a policy: plays it, asks its network again, and distils a rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pydantic import NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track

from conserve_gym.agents.explanation import report
from conserve_gym.agents.explanation.contributions import candidate_rows, decision_rows, explain
from conserve_gym.agents.explanation.counterfactual import Counterfactual
from conserve_gym.agents.explanation.distillation import (
    agreement,
    distil,
    losses,
    tree_classifier,
)
from conserve_gym.agents.explanation.importance import importance
from conserve_gym.agents.explanation.recording import exported_policy, record
from conserve_gym.agents.explanation.report import Explanation
from conserve_gym.agents.explanation.shares import share_rows
from conserve_gym.agents.provenance import provenance, write_json
from conserve_gym.agents.seeds import FIRST_TRAINING_SEED, evaluation_seeds
from conserve_gym.envs.configuration import of_split, scenario, validated_part
from conserve_gym.envs.fields import STRICT


@dataclass(frozen=True, config=STRICT)
class ExplanationSpec:
    """What is explained, and how thoroughly.

    Attributes:
        policy: A training run or an exported policy, with a preference if it shall have one.
        seeds: Unseen episodes: a count or a list.
        decisions: Numbers of the first episode's decisions to write out.
        repeats: How often each field and estimate is shuffled.
        training_episodes: What the rule is fitted to.
        depth: Questions in a row that the rule may ask.
        balanced: Whether both answers weigh the same when the rule is fitted, however rare one is;
            else every decision does.
        output: Folder to write to.
    """

    policy: str | dict[str, dict[str, Any]]
    seeds: int | list[int]
    decisions: list[NonNegativeInt]
    repeats: PositiveInt
    training_episodes: PositiveInt
    depth: PositiveInt
    balanced: bool
    output: Path


def run(config: DictConfig, console: Console) -> list[Path]:
    """Explain a policy and write the report.

    Raises:
        ConfigurationError: A key or value is not right, the policy is no network, or scikit-learn
            is missing.
    """
    spec = validated_part(ExplanationSpec, config)
    seeds = evaluation_seeds(spec.seeds)
    tree_classifier()  # missing, it is better missed now than in the end
    training = scenario(of_split(config, "train"))
    unseen = scenario(of_split(config, "test"))
    scheduler = exported_policy(spec.policy, unseen.cluster)
    spec.output.mkdir(parents=True, exist_ok=True)

    def shown(what: Any, says: str) -> Any:
        return track(what, says, console=console, transient=True)

    recordings = [record(unseen, scheduler, seed) for seed in shown(seeds, "playing")]
    asked = Counterfactual(scheduler, unseen.cluster.fleet(scheduler.deployment))
    decisions, candidates, examples = [], [], []
    for recording in shown(recordings, "explaining decisions"):
        explained = explain(recording, asked)
        decisions += decision_rows(recording, explained)
        candidates += candidate_rows(recording, explained)
        if recording is recordings[0]:
            examples = [explained[i] for i in spec.decisions if i < len(explained)]
    important = importance(shown(recordings, "shuffling"), asked, spec.repeats)
    first = range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + spec.training_episodes)
    played = [record(training, scheduler, seed) for seed in shown(first, "playing to be imitated")]
    rules = [distil(played, scheduler, d, spec.balanced) for d in range(spec.depth + 1)]
    found = Explanation(
        scheduler,
        unseen,
        asked,
        recordings,
        decisions,
        candidates,
        examples,
        important,
        rules[-1],
        spec.training_episodes,
        [agreement(recordings, rule, depth) for depth, rule in enumerate(rules)],
        losses(recordings, unseen, scheduler, rules[-1], rules[0]),
        [
            {"seed": recording.episode.seed, **row}
            for recording in recordings
            for row in share_rows(recording.episode.ledger, asked.fleet)
        ],
    )
    stamp = {"imitates": spec.policy, **provenance(unseen.cluster)}
    written = report.write(spec.output, found, stamp)
    written.append(spec.output / "explanation.json")
    write_json(written[-1], {"config": OmegaConf.to_container(config, resolve=True), **stamp})
    console.print(Markdown(report.text(found)))
    return written
