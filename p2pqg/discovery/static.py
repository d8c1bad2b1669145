"""Addresses from a file, or any other table."""

from __future__ import annotations

from collections.abc import Mapping

from p2pqg.discovery.base import Announcement, Found


class StaticDiscovery:
    """Reports `addresses` once."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self._addresses = addresses

    async def start(self, announcement: Announcement, found: Found) -> str:
        for agent, address in self._addresses.items():
            if agent != announcement.agent:
                found(agent, address)
        return self._addresses.get(announcement.agent, "")

    async def close(self) -> None:
        pass
