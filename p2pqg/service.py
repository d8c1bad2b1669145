"""What systemd wants to hear from a service (`man sd_notify`); silent where it did not start the agent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any


def notify(**state: object) -> None:
    """Send lines like ``READY=1``. Whether anybody listens does not matter to the agent."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    text = "\n".join(f"{key}={value}" for key, value in state.items())
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.setblocking(False)
        channel.sendto(text.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)


def watchdog_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """How often a sign of life is expected from this process; None if nobody waits for one."""
    microseconds, process = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID")
    if not microseconds.isdecimal() or int(microseconds) == 0 or process not in (None, str(os.getpid())):
        return None
    return int(microseconds) / 1e6


async def keep_notified(snapshot: Callable[[], Mapping[str, Any]]) -> None:
    """Say that the agent listens, then that its event loop lives, and what it does, until cancelled.

    The loop receives, decides and answers; if it hangs, the agent is deaf, and systemd starts it again.
    """
    expected_s = watchdog_s()
    period_s = 10.0 if expected_s is None else min(10.0, expected_s / 2)
    ready = False
    while True:
        seen = snapshot()
        if seen["address"] and not ready:
            ready = True
            notify(READY=1)
        links = seen["links"]
        live = sum(link["state"] == "live" for link in links)
        summary = (
            f"{seen['state']}, round {seen['round']} of {seen['rounds']}, {live} of {len(links)} neighbours"
        )
        notify(STATUS=summary, **({} if expected_s is None else {"WATCHDOG": 1}))
        await asyncio.sleep(period_s if ready else 0.1)
