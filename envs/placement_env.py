"""The Gymnasium environments: one step is one conversation, or one turn, at the door."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeAlias, TypeVar, cast

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from conserve_gym.actions import actions_of
from conserve_gym.deployment import Deployment
from conserve_gym.envs import rendering
from conserve_gym.envs.configuration import ConfigurationError, Scenario
from conserve_gym.envs.randomised import RandomisedScenario, load_scenarios
from conserve_gym.envs.reward import reward_terms, weighted
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.standalone import Standalone, StandaloneEngine
from conserve_gym.envs.serving.timeline import Timeline
from conserve_gym.envs.workloads.workload import draw_episode
from conserve_gym.fleet import Fleet
from conserve_gym.metrics import ConversationRecord, RecordReader, summarise
from conserve_gym.observation import FIELDS, FIELDS_OF, GROUPS, Observation, Scaler, split

T = TypeVar("T", bound=np.generic)
ObservationDict: TypeAlias = dict[str, npt.NDArray[np.float32]]


def _observation_table() -> str:
    """Return the observation fields as the table of an environment's documentation."""
    rows = [
        f"    | {f.group} | {f.name} | {f.unit} | 0 | {f.high:g} | {f.scale} | {f.meaning} |"
        for f in FIELDS
    ]
    head = "    | Group | Field | Unit | Min | Max | Scale | Meaning |"
    return "\n".join([head, "    |---|---|---|---|---|---|---|", *rows])


class PlacementEnv(gymnasium.Env[ObservationDict, np.int64]):
    """What the placement environments share; see ``ConversationPlacementEnv``."""

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it on the instance
        "render_modes": ["ansi", "rgb_array"],
        "render_fps": 4,  # a frame a decision: about three times as fast as the paper's arrivals
    }
    action_kind: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Put the table of observation fields into the documentation."""
        super().__init_subclass__(**kwargs)
        cls.__doc__ = (cls.__doc__ or "").replace("    <observation table>", _observation_table())

    def __init__(
        self,
        scenario: Scenario | RandomisedScenario | Sequence[str] = (),
        render_mode: str | None = None,
    ) -> None:
        """Lay out the spaces for the scenario's cluster, or for the largest one."""
        if not isinstance(scenario, Scenario | RandomisedScenario):
            scenario = load_scenarios(scenario)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigurationError(
                f"render_mode={render_mode!r} is none of {self.metadata['render_modes']}"
            )
        self._random = scenario if isinstance(scenario, RandomisedScenario) else None
        nominal = scenario.nominal if isinstance(scenario, RandomisedScenario) else scenario
        self.render_mode = render_mode
        self.deployment = self.deployed(nominal.deployment)
        self._enter(nominal)
        self.most_engines, self.most_actions = len(self.fleet.roles), len(self.actions.meanings)
        if self._random:
            self.most_engines, self.most_actions = most(
                self._random, self.action_kind, self.deployment
            )
        shapes = {group: (len(FIELDS_OF[group]),) for group in GROUPS}
        space = spaces.Dict(
            {
                group: spaces.Box(
                    0.0,
                    1.0,
                    (self.most_engines, *shape) if group == "engines" else shape,
                    np.float32,
                )
                for group, shape in shapes.items()
            }
        )
        self.observation_space = cast(spaces.Space[ObservationDict], space)
        self.action_space = spaces.Discrete(self.most_actions)
        self._cluster: Cluster | None = None
        self._timeline: Timeline | None = None

    def _enter(self, scenario: Scenario) -> None:
        """Go over to a scenario's cluster."""
        self.scenario = scenario
        spec = scenario.cluster
        self.fleet = spec.fleet(self.deployment)
        try:
            self.actions = actions_of(
                self.action_kind, self.fleet, scenario.offload_above, self.deployment.may_hold
            )
        except ValueError as error:
            raise ConfigurationError(f"cluster {spec.name!r}: {error}") from None
        self._scaler = Scaler(len(self.fleet.roles))
        self._standalone = StandaloneEngine.of(spec)
        self._caveats = spec.caveats

    @classmethod
    def deployed(cls, deployment: Deployment) -> Deployment:
        """Return how the environment runs the GPUs, given what its scenario says."""
        return deployment

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObservationDict, dict[str, Any]]:
        """Draw the episode's conversations and run to the first decision."""
        super().reset(seed=seed)
        if self._random:
            self._enter(self._random.draw(self.np_random))
        episode = draw_episode(self.scenario.workload, self.scenario.arrivals, self.np_random)
        spec = self.scenario.cluster
        if self.render_mode == "rgb_array":
            self._timeline = Timeline(spec.deployed(self.deployment))
        self._cluster = Cluster(spec, self.deployment, episode, self._timeline)
        self._reader = RecordReader()
        self._read = 0
        self._records: list[ConversationRecord] = []
        self._alone: list[Standalone] = []
        self._joules = 0.0
        self._cluster.advance()
        observation = self._observe()
        return self._scaled(observation), self._info(0.0)

    def step(self, action: np.int64) -> tuple[ObservationDict, float, bool, bool, dict[str, Any]]:
        """Place the conversation at the door and run to the next decision, or to the end."""
        cluster = self.cluster
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is not in {self.action_space}")
        if self._observation.conversation < 0:
            raise gymnasium.error.ResetNeeded("the episode has ended: call reset()")
        if action >= len(self.actions.meanings):
            raise ValueError(
                f"action {action!r} is none of this cluster's {len(self.actions.meanings)}; "
                "action_masks() leaves such actions out"
            )
        placed_s = cluster.now
        cluster.place(self.actions.placement(self._observation, int(action)))
        terminated = not cluster.advance()
        observation = self._observe()

        ended = self._reader.read(cluster.ledger.since(self._read))
        joules = cluster.meter()
        self._read = len(cluster.ledger)
        alone = [
            self._standalone.latencies(cluster.conversations[record.conversation].turns)
            for record in ended
        ]
        terms = reward_terms(
            map(ConversationRecord.normalised, ended, alone),
            joules - self._joules,
            observation.engine_field("kv_known")[list(self.fleet.decoders)],
        )
        self._joules = joules
        self._records += ended
        self._alone += alone
        info = self._info(cluster.now - placed_s)
        info["reward_terms"] = terms
        if terminated:
            info["metrics"] = self._summary()
        return (
            self._scaled(observation),
            weighted(terms, self.scenario.reward),
            terminated,
            False,
            info,
        )

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Return which actions find room now, shape (actions,)."""
        return _lengthened(self.actions.mask(self._observation), self.most_actions)

    def placements(self) -> npt.NDArray[np.float32]:
        """Return what each action would do now, shape (actions, columns).

        A row has the prefill engine, the decode engine, ``offload_above`` scaled to [0, 1], and
        what the placement is estimated to cost: ``conserve_gym.estimates.COLUMNS``, scaled. Where
        clusters are drawn, rows of zeros follow.
        """
        return _lengthened(self.actions.table(self._observation), self.most_actions)

    def render(self) -> str | npt.NDArray[np.uint8] | None:
        """Return the cluster as text, as a policy sees it, or what ran where as a picture."""
        if self.render_mode == "ansi":
            return rendering.as_text(self._observation)
        if self.render_mode == "rgb_array":
            from conserve_gym.envs import timeline_picture  # Matplotlib, only where it is needed

            now = self.cluster.now
            assert self._timeline is not None
            return timeline_picture.frame(self._timeline, now, rendering.heading(self._observation))
        return None

    @property
    def cluster(self) -> Cluster:
        """The simulated cluster of the episode under way."""
        if self._cluster is None:
            raise gymnasium.error.ResetNeeded("call reset() first")
        return self._cluster

    def _observe(self) -> Observation:
        self._observation = self.cluster.observe()
        return self._observation

    def _scaled(self, observation: Observation) -> ObservationDict:
        groups = split(self._scaler(observation.raw))
        groups["engines"] = _lengthened(groups["engines"], self.most_engines)
        return groups

    def _info(self, dt: float) -> dict[str, Any]:
        return {
            "dt": dt,
            "sim_time": self.cluster.now,
            "conversation_id": self._observation.conversation,
            "caveats": self._caveats,
        }

    def _summary(self) -> dict[str, float]:
        return summarise(
            self._records,
            self._alone,
            joules=self._joules,
            output_by_engine=self._reader.output_by_engine,
            decoders=self.fleet.decoders,
            kv_bytes_per_token=self.scenario.cluster.kv_bytes_per_token,
        )


def most(
    scenarios: RandomisedScenario, action_kind: str, deployment: Deployment
) -> tuple[int, int]:
    """Return the number of engines and of actions that no drawn cluster exceeds.

    Raises:
        ConfigurationError: Some cluster that may be drawn does not allow such actions.
    """
    sizes = []
    for roles in dict.fromkeys(scenarios.roles(deployment)):
        fleet = Fleet(roles, (1,) * len(roles))
        try:
            actions = actions_of(
                action_kind, fleet, scenarios.nominal.offload_above, deployment.may_hold
            )
        except ValueError as error:
            raise ConfigurationError(f"randomise: {error}") from None
        sizes.append((len(roles), len(actions.meanings)))
    engines, actions_ = zip(*sizes, strict=True)
    return max(engines), max(actions_)


def _lengthened(rows: npt.NDArray[T], length: int) -> npt.NDArray[T]:
    """Return rows with zeros after them."""
    if len(rows) == length:
        return rows
    longer = np.zeros((length, *rows.shape[1:]), dtype=rows.dtype)
    longer[: len(rows)] = rows
    return longer


class ConversationPlacementEnv(PlacementEnv):
    """Colocate or disaggregate each conversation.

    ## Description
    LLM-agent conversations arrive at a GPU cluster. Each is many dependent turns: prefill the new
    tokens, decode an answer, wait for a tool, again. Per conversation the agent chooses to
    prefill the first turn where it will be decoded (no KV transfer, but a long prefill stalls
    everyone decoding there) or on a prefill engine, moving the KV cache once (no stall, but a
    queue, a transfer, and fewer engines decoding). The conversation is then pinned to a decoder:
    the one with most free KV. Between two steps the cluster runs on, on a serving model
    calibrated on measurements. The agent sees only what a router has seen happen.

    Conversations wait at the door, first come first served, until some engine has room for their
    known footprint; the agent is asked when the door opens.

    ## Action Space
    `Discrete(2)`: 0 colocates, 1 disaggregates (prefill engine: fewest prompt tokens in flight).

    ## Observation Space
    A `Dict` of `Box(0, 1)` of float32: `cluster` (fields,), `conversation` (fields,), `engines`
    (engines, fields). Raw values from 0 to Max are scaled to [0, 1], linearly or as
    log(1 + x) / log(1 + Max), and clipped. Recent values fade with a time constant of 30 s.
    `gymnasium.wrappers.FlattenObservation` makes one vector of it, in this order.

    <observation table>

    ## Rewards
    The weighted sum of named terms over what became known since the last decision; weights come
    from the configuration (`reward=attainment` by default), terms stand in
    `info["reward_terms"]`:
    `attained` (conversations that ended with TTFET, last-turn TBT and E2E within 5 x their
    standalone values), `ttfet`, `tbt`, `e2e` (less the excess over standalone, in SLOs, at most 4
    a conversation), `energy` (less kilojoules of all engines), `imbalance` (less the coefficient of
    variation of what decoders hold of their KV pools).
    `info["dt"]` has the seconds that passed, for discounting by time, and `info["caveats"]` what of
    the cluster's hardware was not measured.

    ## Starting State
    An empty cluster with the first conversation at the door. Lengths and arrival times of the
    whole episode are drawn at reset, so that no choice shifts what another policy would see.

    ## Episode End
    1. Termination: the last conversation has ended. The final step runs until then, so that it
       takes longer and brings more reward than others; its `info["metrics"]` has every metric of
       the episode.
    2. Truncation: never.

    `copy.deepcopy(env)` in mid-episode gives an environment with the same future under the same
    actions, for policies that look ahead.

    ## Arguments
    ```python
    >>> import gymnasium, conserve_gym.envs
    >>> env = gymnasium.make("conserve_gym/ConversationPlacement-v0",
    ...                      scenario=["arrivals.rate=1.5", "workload.conversations=20"])
    >>> env.action_space
    Discrete(2)

    ```

    | Argument | Type | Default | Meaning |
    |---|---|---|---|
    | `scenario` | `Scenario`, `RandomisedScenario` or list of str | `()` | a built scenario, what
    draws one an episode, or overrides of `conf/scenario.yaml` as on a Hydra command line |
    | `render_mode` | `"ansi"`, `"rgb_array"` or None | None | text picture of the cluster as a
    policy sees it; or picture of the last 30 s: phases, KV and transfers of every engine |

    With `randomise=fleet` among the overrides every episode has another cluster. The spaces are
    those of the largest: after a smaller one's, `engines` has rows of zeros, and actions that
    `action_masks()` leaves out and that are refused.

    Raises `ConfigurationError` for a key or value that is not right, or a cluster in which
    nothing can be disaggregated.

    ## Version History
    * v0: initial version
    """

    action_kind = "conversation"


class JointPlacementEnv(PlacementEnv):
    """Choose the engines for each conversation, and where its later turns are prefilled.

    ## Description
    As `ConversationPlacement-v0`, but the agent also chooses which engine decodes and which
    prefills, and from how many new tokens on the later turns are prefilled there as well.

    ## Action Space
    `Discrete(n)`: one action a candidate (prefill engine, decode engine, offload_above) that the
    roles allow: for each engine that decodes, colocation there, then every other engine that
    prefills for it with each value of the scenario's `candidates.offload_above`. By default that is
    null alone: later turns stay where they are decoded.
    `action_masks()` says which decoders have room. An action against the mask is carried out all
    the same: the engine then evicts idle KV or preempts.

    ## Observation Space
    A `Dict` of `Box(0, 1)` of float32: `cluster` (fields,), `conversation` (fields,), `engines`
    (engines, fields); scaling as in `ConversationPlacement-v0`.

    <observation table>

    ## Rewards
    As in `ConversationPlacement-v0`.

    ## Starting State
    As in `ConversationPlacement-v0`.

    ## Episode End
    As in `ConversationPlacement-v0`; a copy in mid-episode has the same future here too.

    ## Arguments
    As in `ConversationPlacement-v0`.

    ## Version History
    * v0: initial version
    """

    action_kind = "joint"


class TurnPlacementEnv(PlacementEnv):
    """Choose for each turn where its prompt is prefilled.

    ## Description
    As `ConversationPlacement-v0`, but every turn passes the door and is decided on: prefill it
    where it is decoded, or at a prefill engine, which pulls what it lacks of the conversation's KV
    and sends the new KV back. A turn is decoded where the conversation's last turn was, while there
    is room for it, else at the engine with most free KV, which the history is then moved to. The KV
    of conversations between two turns counts as free, and engines keep it until they need the room.

    With it, rules and learners that decide per turn run on the same cluster, and in the same
    tables, as those that decide per conversation.

    ## Action Space
    `Discrete(2)`: 0 prefills the turn where it is decoded, 1 at a prefill engine (fewest prompt
    tokens in flight). A conversation's first turn is colocated or disaggregated by it.

    ## Observation Space
    A `Dict` of `Box(0, 1)` of float32: `cluster` (fields,), `conversation` (fields,), `engines`
    (engines, fields); scaling as in `ConversationPlacement-v0`. `turn`, `new` and `holds` are those
    of the turn at the door.

    <observation table>

    ## Rewards
    As in `ConversationPlacement-v0`: terms become known when a conversation has ended.

    ## Starting State
    As in `ConversationPlacement-v0`.

    ## Episode End
    As in `ConversationPlacement-v0`; a copy in mid-episode has the same future here too.

    ## Arguments
    As in `ConversationPlacement-v0`; the scenario's `deployment.decides_every_turn` counts as true.

    ## Version History
    * v0: initial version
    """

    action_kind = "turn"

    @classmethod
    def deployed(cls, deployment: Deployment) -> Deployment:
        """Return the scenario's deployment, with a decision on every turn."""
        return replace(deployment, decides_every_turn=True)


ENVIRONMENTS: dict[str, type[PlacementEnv]] = {
    environment.action_kind: environment
    for environment in (ConversationPlacementEnv, JointPlacementEnv, TurnPlacementEnv)
}
"""The environments by their kind of action, as ``environment=`` names them."""
