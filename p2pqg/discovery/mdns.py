"""Agents on the local network find each other: DNS-SD over mDNS, service `_p2pqg._tcp` (RFC 6762, 6763).

The TXT record has `network`, `run`, `agent` and `versions` (oldest-newest); agents of other networks and
runs, or without a common version, are passed over. An instance is called by the agent's name and a hash of
network and run, so several networks share a LAN. IPv4 and IPv6; only on the chosen interfaces, if any are.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
from collections.abc import Iterator, Sequence

import ifaddr
from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from p2pqg.discovery.base import Announcement, Found
from p2pqg.errors import ConfigError

SERVICE = "_p2pqg._tcp.local."
RESOLVE_MS = 3000

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class MdnsDiscovery:
    """On the interfaces of these names (all but loopback, if none is named)."""

    def __init__(self, interfaces: Sequence[str] = ()) -> None:
        self._interfaces = tuple(interfaces)
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._info: AsyncServiceInfo | None = None
        self._resolving: set[asyncio.Task[None]] = set()

    async def start(self, announcement: Announcement, found: Found) -> str:
        own = sorted(addresses(self._interfaces), key=_preference)
        if not own:
            raise ConfigError("expected a network interface with an address, found none", key="network.mdns")
        self._own, self._found = announcement, found
        self._zeroconf = AsyncZeroconf(
            interfaces=[str(address) for address in own],
            ip_version=_versions(own),
        )
        self._info = AsyncServiceInfo(
            SERVICE,
            instance(announcement),
            port=announcement.port,
            addresses=[address.packed for address in own],
            server=f"{instance(announcement).removesuffix('.' + SERVICE)}.local.",
            properties={
                "network": announcement.network,
                "run": announcement.run,
                "agent": announcement.agent,
                "versions": "-".join(map(str, announcement.versions)),
            },
        )
        await self._zeroconf.async_register_service(self._info)
        self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE, handlers=[self._seen])
        return _with_port(own[0], announcement.port)

    async def close(self) -> None:
        if self._zeroconf is None:
            return
        if self._browser is not None:
            await self._browser.async_cancel()
        for task in self._resolving:
            task.cancel()
        if self._info is not None:
            await self._zeroconf.async_unregister_service(self._info)
        await self._zeroconf.async_close()
        self._zeroconf = None

    def _seen(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        if state_change is ServiceStateChange.Removed or name == instance(self._own):
            return
        task = asyncio.get_running_loop().create_task(self._resolve(zeroconf, name))
        self._resolving.add(task)
        task.add_done_callback(self._resolving.discard)

    async def _resolve(self, zeroconf: Zeroconf, name: str) -> None:
        info = AsyncServiceInfo(SERVICE, name)
        if await info.async_request(zeroconf, RESOLVE_MS) and (found := self._of_ours(info)):
            self._found(*found)

    def _of_ours(self, info: AsyncServiceInfo) -> tuple[str, str] | None:
        """Name and address, if this is an agent of our network that we can talk to."""
        said = {key.decode("utf-8", "replace"): (value or b"").decode("utf-8", "replace")
                for key, value in info.properties.items()}  # fmt: skip
        own = self._own
        if (said.get("network"), said.get("run")) != (own.network, own.run) or not _common(
            said.get("versions", ""), own.versions
        ):
            return None
        reachable = sorted(map(ipaddress.ip_address, info.parsed_scoped_addresses()), key=_preference)
        agent = said.get("agent", "")
        if not reachable or not info.port or not agent or agent == own.agent:
            return None
        return agent, _with_port(reachable[0], info.port)


def instance(announcement: Announcement) -> str:
    """The service instance's name: the agent's, made distinct by its network and run; a label holds 63
    bytes."""
    key = repr((announcement.network, announcement.run, announcement.agent)).encode()
    return f"{announcement.agent[:40]}-{hashlib.blake2b(key, digest_size=6).hexdigest()}.{SERVICE}"


def addresses(interfaces: Sequence[str] = ()) -> Iterator[Address]:
    """The addresses of these interfaces (all but loopback, if none is named). Raises `ConfigError` for one
    that is not there."""
    adapters = {adapter.name: adapter for adapter in ifaddr.get_adapters()}
    for name in interfaces:
        if name not in adapters:
            raise ConfigError(
                f"expected one of {', '.join(adapters)}, found {name!r}", key="network.interfaces"
            )
    for name, adapter in adapters.items():
        if interfaces and name not in interfaces:
            continue
        for ip in adapter.ips:
            address = ipaddress.ip_address(ip.ip if isinstance(ip.ip, str) else ip.ip[0])
            if interfaces or not address.is_loopback:
                yield address


def _common(said: str, own: tuple[int, int]) -> bool:
    low, _, high = said.partition("-")
    if not (low.isdecimal() and high.isdecimal()):
        return False
    return max(int(low), own[0]) <= min(int(high), own[1])


def _preference(address: Address) -> tuple[bool, bool, str]:
    """IPv4 before IPv6, because a link-local one is no use without its interface; loopback last."""
    return address.is_loopback, address.version == 6, str(address)


def _versions(own: Sequence[Address]) -> IPVersion:
    found = {address.version for address in own}
    return IPVersion.All if len(found) == 2 else IPVersion.V4Only if found == {4} else IPVersion.V6Only


def _with_port(address: Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
