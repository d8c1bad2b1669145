"""A bad link: a TCP proxy that delays, throttles, breaks and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator

BURST_S = 0.05
"""What a busy machine was late for is made up for, as the buffer of a real link would."""


class SlowLink:
    """Forwards connections to `address`. In each direction a byte takes `delay_s`, and all connections
    together get `bytes_per_s`; a sender beyond that is held back, as a full socket buffer would."""

    def __init__(self, address: str, *, delay_s: float = 0.0, bytes_per_s: float = math.inf) -> None:
        self.delay_s, self.bytes_per_s = delay_s, bytes_per_s
        self.forwarded = 0
        """Bytes, in both directions."""
        self.up = True
        self._target = address
        self._free_s = {"in": 0.0, "out": 0.0}
        self._open: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self, address: str) -> AsyncIterator[SlowLink]:
        """Listen at `address` meanwhile."""
        host, _, port = address.rpartition(":")
        server = await asyncio.start_server(self._serve, host, int(port))
        try:
            yield self
        finally:
            server.close()
            self.cut()
            await asyncio.gather(*self._serving, return_exceptions=True)

    def cut(self) -> None:
        """Break every connection, and refuse new ones until `restore`."""
        self.up = False
        for writer in self._open:
            writer.transport.abort()

    def restore(self) -> None:
        self.up = True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        writers = [writer]
        try:
            if self.up:
                there, back = await asyncio.open_connection(*self._target.rsplit(":", 1))
                writers.append(back)
                self._open.update(writers)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump("in", reader, back))
                    group.create_task(self._pump("out", there, writer))
        except* OSError:
            pass  # one end is gone; so is the connection
        finally:
            for each in writers:
                self._open.discard(each)
                each.transport.abort()
            self._serving.discard(task)

    async def _pump(self, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        now = asyncio.get_running_loop().time
        on_its_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due_s, data = await on_its_way.get()
                await asyncio.sleep(due_s - now())
                if not data:
                    raise ConnectionResetError("the other end closed the connection")
                writer.write(data)
                await writer.drain()

        async with asyncio.TaskGroup() as group:
            group.create_task(deliver())
            data = b"more"
            while data:
                data = await reader.read(1 << 14)
                self.forwarded += len(data)
                arrived_s = now()
                left_s = max(self._free_s[way], arrived_s - BURST_S) + len(data) / self.bytes_per_s
                self._free_s[way] = left_s
                await asyncio.sleep(left_s - arrived_s)
                on_its_way.put_nowait((max(left_s, arrived_s) + self.delay_s, data))
