"""Real agents on one host: over the in-memory network in this process, or as processes over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from p2pqg.agent import Agent, Outcome
from p2pqg.config import AgentTable, NetworkFile, RunSettings, agent_names
from p2pqg.tasks.base import Task
from p2pqg.transport import virtual_time
from p2pqg.transport.memory import MemoryNetwork


def in_memory(
    network: NetworkFile,
    settings: RunSettings,
    tasks: Sequence[Task],
    memory: MemoryNetwork,
    **table: object,
) -> list[tuple[Agent, Outcome]]:
    """Run all agents of `network` to their end in this process, under virtual time.

    `tasks[i]` belongs to the i-th name; `table` overrides settings of ``[agent]``.
    """
    agents = [
        Agent(
            AgentTable.model_validate({"name": name, **table}),
            network,
            settings,
            task,
            memory.transport(name),
        )
        for name, task in zip(network.names, tasks, strict=True)
    ]

    async def main() -> list[Outcome]:
        return await asyncio.gather(*(agent.run() for agent in agents))

    return list(zip(agents, virtual_time.run(main()), strict=True))


def memory_network(topology: str, n: int, name: str = "test") -> NetworkFile:
    """The topology file of n agents that live in a `MemoryNetwork`."""
    agents = [{"name": name, "address": f"memory:{name}"} for name in agent_names(n)]
    return NetworkFile.model_validate({"name": name, "topology": topology, "agents": agents})
