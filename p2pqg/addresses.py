"""``host:port`` as people write it, IPv6 in brackets."""

from __future__ import annotations

import ipaddress

from p2pqg.errors import ConfigError


def host_and_port(address: str, key: str = "", where: str = "") -> tuple[str, int]:
    """Its parts. Raises `ConfigError`, with `key` and `where`, for anything else."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"expected host:port, found {address!r}", key=key, where=where)
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether `host` can be reached from this machine only. A name may resolve to anything, so only
    "localhost" is taken for one."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_local(address: str) -> bool:
    """The same of ``host:port``, or of a path behind ``unix:``."""
    return address.startswith("unix:") or is_loopback(address.rpartition(":")[0].strip("[]"))
