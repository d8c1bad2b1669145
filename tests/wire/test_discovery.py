"""Discovery, on real mDNS over loopback."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from p2pqg.discovery import Announcement
from p2pqg.discovery.mdns import MdnsDiscovery, addresses, instance
from p2pqg.errors import ConfigError

OWN = Announcement("agent-000", "ward", "1", (1, 1), "127.0.0.1:7000")


def test_instances_are_distinct_and_fit_a_label() -> None:
    others = [replace(OWN, network="other"), replace(OWN, run="2"), replace(OWN, agent="x" * 63)]
    names = {instance(one) for one in (OWN, *others)}
    assert len(names) == 4
    assert all(len(name.split(".")[0]) <= 63 for name in names)


def test_an_interface_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"expected one of .*lo.*, found 'nowhere0'"):
        list(addresses(["nowhere0"]))


def test_agents_of_one_network_find_each_other() -> None:
    """And none of another network or run, or one without a common version."""
    everyone = [
        OWN,
        replace(OWN, agent="agent-001", listening="127.0.0.1:7001"),
        replace(OWN, agent="agent-002", network="other", listening="127.0.0.1:7002"),
        replace(OWN, agent="agent-003", run="2", listening="127.0.0.1:7003"),
        replace(OWN, agent="agent-004", versions=(2, 3), listening="127.0.0.1:7004"),
        replace(OWN, agent="agent-005", versions=(1, 3), listening="127.0.0.1:7005"),
    ]
    found: dict[str, dict[str, str]] = {one.agent: {} for one in everyone}

    async def main() -> None:
        discoveries = [MdnsDiscovery(["lo"]) for _ in everyone]
        await asyncio.gather(
            *(
                d.start(one, found[one.agent].__setitem__)
                for d, one in zip(discoveries, everyone, strict=True)
            )
        )
        try:
            async with asyncio.timeout(20):
                while len(found["agent-000"]) < 2 or len(found["agent-004"]) < 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.3)
        finally:
            await asyncio.gather(*(discovery.close() for discovery in discoveries))

    asyncio.run(main())
    assert found["agent-000"].keys() == {"agent-001", "agent-005"}
    assert found["agent-000"]["agent-001"].endswith(":7001")
    assert found["agent-004"].keys() == {"agent-005"}, "a newer one meets the one that speaks both"
    assert found["agent-002"] == found["agent-003"] == {}
