"""Settings: TOML in, validated values out.

`RunSettings` is what `simulate`, `swarm` and `join` share; what a whole network must agree on is
`RunSettings.agreed`, which travels in the handshake. A network's file may set any of them for all its
agents, and an agent's file has the last word: a site says where its data are and how large its batches; if
it changes what must be agreed on, the others refuse it by name. Unknown keys are refused, and every error
names the file, the key, what was expected and what was found.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from p2pqg import algorithms, topology
from p2pqg.algorithms import Algorithm
from p2pqg.errors import ConfigError
from p2pqg.flat import Spec
from p2pqg.privacy.accounting import Accountant, Mechanism, noise_multiplier
from p2pqg.privacy.sums import WIRE, require_possible
from p2pqg.privacy.task import private
from p2pqg.schedules import Schedule
from p2pqg.security.certificates import AGENT_NAME
from p2pqg.tasks.base import Task, TaskContext
from p2pqg.tasks.precision import Precision
from p2pqg.tasks.registry import TaskFactory
from p2pqg.tasks.supervised import SupervisedTask
from p2pqg.topology import Topology
from p2pqg.topology.rules import check_rule

Wire = Literal["float32", "float16", "float64"]
AgentName = Annotated[str, Field(pattern=AGENT_NAME)]


class Settings(BaseModel):
    """Base of every table: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class TaskSettings(Settings):
    """``[task]``: what is trained, and how a common data set is shared out."""

    name: str = "digits"
    partition: str = "dirichlet"
    alpha: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=32, ge=1)
    data: Path | None = None
    dtype: Literal["float32", "float64"] = "float32"
    precision: Precision = "float32"
    """Of the arithmetic of gradients and scores alone, see `p2pqg.tasks.precision`."""
    weighting: Literal["uniform", "samples"] = "uniform"
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of parameters and inputs."""
        return torch.float64 if self.dtype == "float64" else torch.float32


class AlgorithmSettings(Settings):
    """``[algorithm]``: a name of `p2pqg.algorithms.ALGORITHMS` and its hyper-parameters; those that only some
    methods have stand in ``[algorithm.options]``."""

    name: str = "qg-dsgdm-n"
    beta: float | None = None
    mu: float | None = None
    weight_decay: float = 0.0
    local_steps: int = 1
    options: dict[str, Any] = Field(default_factory=dict)

    def build(self) -> Algorithm:
        """The algorithm. Raises `ConfigError` for what it does not know or allow."""
        common = self.model_dump(exclude={"options"})
        if twice := sorted(set(common) & set(self.options)):
            raise ConfigError("expected this in [algorithm] itself", key=f"algorithm.options.{twice[0]}")
        return algorithms.build(**common, **self.options)


class ScheduleSettings(Settings):
    """``[schedule]``: see `p2pqg.schedules.Schedule`."""

    lr: float = 0.1
    warmup_steps: int = 0
    warmup_from: float = 0.1
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    cosine_steps: int | None = None
    floor: float = 0.01

    def build(self) -> Schedule:
        """The schedule. Raises `ConfigError` for rates that make no sense."""
        return Schedule(**self.model_dump())


class FinishSettings(Settings):
    """``[finish]``: rounds of gossip without training at the end, until any two neighbours' models differ
    by at most `tolerance` (relative to their norm), never more than `max_rounds`."""

    tolerance: float = Field(default=1e-3, gt=0)
    max_rounds: int = Field(default=200, ge=0)


class PrivacySettings(Settings):
    """``[privacy]``: differential privacy of each agent's records, and secure sums, see docs/privacy.md. With
    `target_epsilon` alone, the noise is what `rounds` of training (all of them unless set) can afford; with
    `noise_multiplier` alone, epsilon is only counted; with both, training stops when it is spent."""

    dp: bool = False
    max_grad_norm: float = Field(default=1.0, gt=0)
    noise_multiplier: float | None = Field(default=None, ge=0)
    target_epsilon: float | None = Field(default=None, gt=0)
    target_delta: float = Field(default=1e-5, gt=0, lt=1)
    rounds: int | None = Field(default=None, ge=1)
    accountant: Accountant = "prv"
    secure_sums: bool = False
    """Whether an agent learns only the sum of what its neighbours send."""
    min_senders: int = Field(default=2, ge=2)
    """Neighbours that a sum takes at least."""

    @model_validator(mode="after")
    def _decided(self) -> PrivacySettings:
        if self.dp and self.noise_multiplier is None and self.target_epsilon is None:
            raise ConfigError(
                "expected a value, or a noise_multiplier; found none", key="privacy.target_epsilon"
            )
        if self.rounds is not None and (self.noise_multiplier is not None or self.target_epsilon is None):
            raise ConfigError(
                f"expected only with target_epsilon and without noise_multiplier, found {self.rounds}",
                key="privacy.rounds",
            )
        return self

    def mechanism(self, samples: int, batch_size: int, rounds: int, local_steps: int) -> Mechanism | None:
        """What makes an agent's gradients private: mini-batches of `batch_size` of its `samples` on average,
        `local_steps` of them in each of `rounds` rounds. None without `dp`."""
        if not self.dp:
            return None
        rate, steps = min(1.0, batch_size / samples), (self.rounds or rounds) * local_steps
        noise = self.noise_multiplier
        if noise is None:
            assert self.target_epsilon is not None
            noise = noise_multiplier(self.target_epsilon, self.target_delta, rate, steps, self.accountant)
        return Mechanism(
            max_grad_norm=self.max_grad_norm,
            noise_multiplier=noise,
            sample_rate=rate,
            delta=self.target_delta,
            planned=steps,
            budget=self.target_epsilon,
            accountant=self.accountant,
        )


class RunSettings(Settings):
    """What a simulation and a network of agents have in common."""

    rounds: int = Field(default=100, ge=1)
    seed: int = Field(default=0, ge=0)
    eval_every: int = Field(default=0, ge=0)
    """Rounds between evaluations; 0 evaluates at the end only."""
    task: TaskSettings = TaskSettings()
    algorithm: AlgorithmSettings = AlgorithmSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    finish: FinishSettings = FinishSettings()
    privacy: PrivacySettings | None = None

    @model_validator(mode="after")
    def _buildable(self) -> RunSettings:
        self.algorithm.build()
        self.schedule.build()
        return self

    def context(self, agent: str, agents: tuple[str, ...]) -> TaskContext:
        """What the task factory of `agent` is told."""
        task = self.task
        return TaskContext(
            agent=agent,
            agents=agents,
            seed=self.seed,
            partition=task.partition,
            alpha=task.alpha,
            batch_size=task.batch_size,
            data=task.data,
            dtype=task.torch_dtype,
            options=task.options,
        )

    def make_task(self, factory: TaskFactory, agent: str, agents: tuple[str, ...]) -> Task:
        """The task of `agent`, in the precision asked for. Raises `ConfigError` for one that cannot."""
        task, precision = factory(self.context(agent, agents)), self.task.precision
        if precision == "float32":
            return task
        if not isinstance(task, SupervisedTask):
            expected, found = "a SupervisedTask", type(task).__name__
        elif task.spec.dtype != torch.float32:
            expected, found = "a model in float32", str(task.spec.dtype).removeprefix("torch.")
        elif self.privacy is not None and self.privacy.dp:
            expected, found = "gradients without differential privacy", "privacy.dp"
        else:
            task.precision = precision
            return task
        raise ConfigError(f"{precision} expects {expected}, found {found}", key="task.precision")

    def mechanism(self, task: Task) -> Mechanism | None:
        """What makes the gradients of an agent's task private; None without ``privacy.dp``. Raises
        `ConfigError` for a task that cannot be made so."""
        if self.privacy is None or not self.privacy.dp:
            return None
        own = private(task)
        return self.privacy.mechanism(own.samples, own.batch_size, self.rounds, self.algorithm.local_steps)

    @property
    def secure_sums(self) -> int:
        """How many senders a sum takes at least; 0 where models are sent as they are."""
        return self.privacy.min_senders if self.privacy and self.privacy.secure_sums else 0

    def require_secure_sums(self, graphs: Topology) -> None:
        """Raise `ConfigError` if secure sums are asked for and cannot be had on a topology."""
        if self.secure_sums:
            require_possible(graphs, self.algorithm.build(), self.algorithm.name, self.secure_sums)

    def wire(self, asked: Wire | None = None) -> str:
        """Number format of models on the wire: what an agent asks for, or the model's own. Raises
        `ConfigError` for one that secure sums cannot add up."""
        if not self.secure_sums:
            return asked or self.task.dtype
        if asked not in (None, "float32"):
            raise ConfigError(
                f"expected none, because secure sums have a format of their own; found {asked}",
                key="agent.wire",
            )
        return WIRE

    def agreed(self, spec: Spec, topology: Topology) -> dict[str, str]:
        """Everything the agents of one network must have in common, by name (not batch size, not privacy)."""
        algorithm = self.algorithm.build()
        return {
            "rounds": str(self.rounds),
            "seed": str(self.seed),
            "partition": f"{self.task.partition} alpha={self.task.alpha}",
            "weighting": self.task.weighting,
            "algorithm": self.algorithm.name,
            **{f"algorithm.{key}": value for key, value in algorithm.describe().items()},
            "schedule": self.schedule.build().describe(),
            "finish": f"tolerance={self.finish.tolerance} max_rounds={self.finish.max_rounds}",
            "model": f"{spec.d} parameters, fingerprint {spec.fingerprint}",
            "topology": f"{topology.name} of {topology.n}, fingerprint {topology.fingerprint}",
            **({"secure_sums": f"of {self.secure_sums} or more"} if self.secure_sums else {}),
        }


class SimulationSettings(RunSettings):
    """`p2pqg simulate` and `p2pqg swarm`: all agents on one host."""

    agents: int = Field(default=8, ge=1)
    topology: str = "ring"

    @model_validator(mode="after")
    def _possible(self) -> SimulationSettings:
        if not self.topology.startswith("edges:"):
            self.require_secure_sums(topology.build(self.topology, self.agents))
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the agents, in order."""
        return agent_names(self.agents)

    @property
    def graph(self) -> Topology:
        """The topology: a known name, or ``edges:FILE`` with one edge (two agent names) a line."""
        if not self.topology.startswith("edges:"):
            return topology.build(self.topology, self.agents)
        path = Path(self.topology.removeprefix("edges:"))
        return topology.from_edge_list(read_text(path).splitlines(), self.names)


class AgentTable(Settings):
    """``[agent]``: this device."""

    name: AgentName
    listen: str = "127.0.0.1:0"
    home: Path = Path("home")
    wire: Wire | None = None
    """Number format of models on the wire; the model's own unless set."""
    round_timeout_s: float = Field(default=60.0, gt=0)
    """How long a round waits for a connected but silent neighbour before going on without it."""
    lag: Literal["wait", "skip"] = "wait"
    """Whether rounds wait for a neighbour that is slow, or go on without it; see `p2pqg.gossip.machine`."""
    advertise: str | None = None
    """Where others dial this agent, if not where the network's file says; empty: they cannot."""
    start_timeout_s: float = Field(default=120.0, gt=0)
    """How long the first round waits for neighbours that have not shown up yet."""
    checkpoint_every: int = Field(default=100, ge=0)
    """Rounds between checkpoints; 0 writes one at the end or on SIGTERM only."""
    threads: int = Field(default=1, ge=1)
    """Threads that torch may use for one operation."""


class TlsTable(Settings):
    """``[tls]``: PEM files; without this table connections are not encrypted and stay on loopback."""

    certificate: Path
    private_key: Path
    authority: Path
    revoked: Path | None = None
    """The authority's list of certificates that it took back; read again when it changes."""
    allow: tuple[str, ...] | None = None
    """Names or key fingerprints of the agents that are let in; all of the network unless set."""


class TelemetryTable(Settings):
    """``[telemetry]``: how the agent can be watched from outside its home."""

    prometheus: str | None = None
    """``address:port`` at which to serve metrics; they are not served unless set."""
    web: str | None = None
    """``address:port`` of the page on which the agent can be watched; there is none unless set."""


class NetworkTable(Settings):
    """``[network]``: the topology file; and whether agents that it does not name are looked for on the local
    network (mDNS), on which interfaces (all, if none is named)."""

    file: Path
    mdns: bool = False
    interfaces: tuple[str, ...] = ()


class AgentSettings(RunSettings):
    """`p2pqg join`: one device of a network."""

    agent: AgentTable
    network: NetworkTable
    tls: TlsTable | None = None
    telemetry: TelemetryTable = TelemetryTable()


class Member(Settings):
    """One ``[[agents]]`` entry of a topology file."""

    name: AgentName
    address: str = ""
    """Where it can be dialled; empty for a site that only dials out."""


class NetworkFile(RunSettings):
    """A network's file: who there is, where, who talks to whom, and what they have in common."""

    name: str
    run: str = "1"
    topology: str = "ring"
    edges: tuple[tuple[str, str], ...] | None = None
    membership: Literal["fixed", "alive"] = "fixed"
    """Whether the graph is over all `agents`, or over whoever is alive, who need not stand here."""
    at_least: int = Field(default=2, ge=1)
    """Agents that make a network where `membership` is "alive"."""
    agents: tuple[Member, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> NetworkFile:
        if len(set(self.names)) < len(self.names):
            raise ConfigError("expected distinct names", key="agents")
        if self.membership == "alive":
            check_rule(self.topology)
            return self
        if not self.agents:
            raise ConfigError("expected at least one agent, found none", key="agents")
        graphs = self.build().graphs
        for a, b in combinations(range(len(self.names)), 2):
            if not self.addresses.keys() & {self.names[a], self.names[b]} and any(
                b in graph.incoming[a] or a in graph.incoming[b] for graph in graphs
            ):
                raise ConfigError(
                    f"expected an address of {self.names[a]} or {self.names[b]}, which are neighbours; "
                    "found none",
                    key="agents",
                )
        return self

    @property
    def rule(self) -> str:
        """The topology where `membership` is "alive", in words."""
        edges = f" with edges {sorted(map(sorted, self.edges))}" if self.edges is not None else ""
        return f"{'edges' if edges else self.topology} over whoever is alive{edges}"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the agents in order; an agent's number in the topology is its place here."""
        return tuple(sorted(member.name for member in self.agents))

    @property
    def addresses(self) -> dict[str, str]:
        """Where each agent can be dialled, as far as it can."""
        return {member.name: member.address for member in self.agents if member.address}

    def build(self) -> Topology:
        """The topology over `names`."""
        if self.edges is not None:
            return topology.from_edge_list((f"{a} {b}" for a, b in self.edges), self.names)
        return topology.build(self.topology, len(self.agents))


def agreed_in(network: NetworkFile, settings: RunSettings, spec: Spec, wire: Wire | None) -> dict[str, str]:
    """What an agent that asks for `wire` must have in common with the others of `network`."""
    living = network.membership == "alive"
    graphs = topology.build(network.topology, 1) if living else network.build()
    rule = {"topology": network.rule} if living else {}
    return settings.agreed(spec, graphs) | {"wire": settings.wire(wire)} | rule


def check_lag(table: AgentTable, network: NetworkFile) -> None:
    """Raise `ConfigError` for an agent that would go on without slow neighbours in a graph that changes from
    round to round. Who is left behind must leave rounds out to meet the others again, and aims at a round
    beyond theirs (`p2pqg.gossip.pace`); where two neighbours meet in some rounds only, being ahead says
    nothing and the round aimed at may be none of theirs: the slow one would be alone for good."""
    if table.lag == "skip" and network.membership == "fixed" and (period := network.build().period) > 1:
        raise ConfigError(
            f'expected "wait", because in {network.topology} neighbours meet in some of {period} rounds, '
            'so that a slow one could not catch up; found "skip"',
            key="agent.lag",
        )


S = TypeVar("S", bound=Settings)


def agent_names(n: int) -> tuple[str, ...]:
    """`agent-000`, `agent-001`, ...: names that sort like their numbers."""
    width = max(3, len(str(n - 1)))
    return tuple(f"agent-{i:0{width}d}" for i in range(n))


def load(kind: type[S], path: Path) -> S:
    """Read and validate a TOML file. Relative paths in it are relative to its folder."""
    return validate(kind, read_table(path), where=str(path), base=path.parent)


def load_agent(path: Path) -> tuple[AgentSettings, NetworkFile]:
    """An agent's settings, completed by those of its network's file; relative paths of either are relative
    to the agent's folder, because data are where the site has them."""
    own = read_table(path)
    alone = validate(AgentSettings, own, where=str(path), base=path.parent)
    network = load(NetworkFile, alone.network.file)
    common = {
        key: value for key, value in read_table(alone.network.file).items() if key in RunSettings.model_fields
    }
    merged = validate(AgentSettings, _merge(common, own), where=str(path), base=path.parent)
    try:
        check_lag(merged.agent, network)
    except ConfigError as error:
        raise ConfigError(error.message, where=str(path), key=error.key) from None
    return merged, network


def read_table(path: Path) -> dict[str, Any]:
    """A TOML file's content. Raises `ConfigError` if it cannot be read or is no TOML."""
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"expected TOML: {error}", where=str(path)) from None


def validate(kind: type[S], table: Mapping[str, Any], *, where: str, base: Path | None = None) -> S:
    """Settings from a table; `where` names its source in errors, paths are resolved against `base`."""
    try:
        settings = kind.model_validate(table)
    except ValidationError as error:
        lines = [_explain(kind, problem) for problem in error.errors()]
        key, message = lines[0]
        more = "".join(f"\n{where}: {k}: {m}" for k, m in lines[1:])
        raise ConfigError(message + more, where=where, key=key) from None
    except ConfigError as error:
        raise ConfigError(error.message, where=where, key=error.key) from None
    return settings if base is None else _resolved(settings, base)


def read_text(path: Path) -> str:
    """A text file's content. Raises `ConfigError` if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except UnicodeDecodeError:
        raise ConfigError("expected UTF-8 text", where=str(path)) from None


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both tables in one; where both have a value, the one `above`."""
    merged = dict(below)
    for key, value in above.items():
        both_tables = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both_tables else value
    return merged


def _resolved(settings: S, base: Path) -> S:
    """A copy in which every relative path is relative to `base`."""
    changes: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Settings):
            changes[name] = _resolved(value, base)
        elif isinstance(value, Path):
            changes[name] = base / value
    return settings.model_copy(update=changes)


def _explain(kind: type[BaseModel], problem: Any) -> tuple[str, str]:
    """Dotted key and ``expected ..., found ...`` for one of pydantic's errors."""
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        table: Any = kind
        for part in location[:-1]:
            field = table.model_fields.get(part) if hasattr(table, "model_fields") else None
            table = field.annotation if field else None
        known = ", ".join(table.model_fields) if hasattr(table, "model_fields") else "the documented keys"
        return key, f"unknown key; expected one of {known}"
    if problem["type"] == "missing":
        return key, "expected a value, found none"
    message = re.sub(r"^Input should (be|match|have)", r"expected a value that should \1", problem["msg"])
    message = message.replace("a value that should be ", "")
    return key, f"{message}, found {problem['input']!r}"
