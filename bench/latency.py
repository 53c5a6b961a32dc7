"""A longer round trip: one process that stands for many hosts' ports, and passes on what it gets a while later.

    python -m bench.latency 10.87.0.200:22:20200 10.87.0.201:22:20201

It prints the port of 127.0.0.1 at which it stands for each, as a JSON list (the third number, or any where that is taken); then it obeys a line at a time on standard
input, and answers each with a line: `delay MS` sets the round trip, `turns` tells how often each host's clients have
spoken after having been answered since they were last asked (about the round trips that they waited for). It ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from dataclasses import dataclass

CHUNK = 1 << 16
WAITING = 1024
"""Chunks under way in one direction; where there are more, the sender waits, as for a full window."""


@dataclass
class Latency:
    """What the proxies share."""

    one_way: float = 0.0
    """Seconds."""


class Proxy:
    """A port that leads to a host's.

    Args:
        latency: may change while connections are open; it holds for what comes from then on.
    """

    def __init__(self, latency: Latency, host: str, port: int):
        self.latency, self.host, self.port = latency, host, port
        self.turns = 0
        self._answered = False

    async def start(self, port: int = 0) -> int:
        """Listen, at this port if it is free; gives the port."""
        try:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=CHUNK)
        except OSError:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=CHUNK)
        return self._server.sockets[0].getsockname()[1]

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        # TCP's own handshake, which a proxy would hide: the client may speak after a round trip, and the host
        # hears of it half a round trip later. asyncio sets TCP_NODELAY on both sockets.
        await asyncio.sleep(2 * self.latency.one_way)
        up, down = asyncio.Queue(WAITING), asyncio.Queue(WAITING)
        reading = asyncio.create_task(self._read(client, up, from_client=True))
        await asyncio.sleep(self.latency.one_way)
        try:
            host, to_host = await asyncio.open_connection(self.host, self.port, limit=CHUNK)
        except OSError:
            reading.cancel()
            to_client.close()
            return
        await asyncio.gather(
            reading, self._deliver(up, to_host), self._read(host, down), self._deliver(down, to_client, to_client_side=True)
        )
        for writer in (to_host, to_client):
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, queue: asyncio.Queue, from_client: bool = False) -> None:
        data = b"-"
        while data:
            with suppress(ConnectionError):  # reset: an end, too
                data = b""
                data = await reader.read(CHUNK)
            if from_client and data:
                self.turns += self._answered
                self._answered = False
            await queue.put((asyncio.get_running_loop().time() + self.latency.one_way, data))

    async def _deliver(self, queue: asyncio.Queue, writer: asyncio.StreamWriter, to_client_side: bool = False) -> None:
        while True:
            due, data = await queue.get()
            await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
            with suppress(OSError):  # who is gone is told nothing more; the queue is emptied all the same
                if not data:
                    writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()
                self._answered = self._answered or to_client_side
            if not data:
                return


async def serve(hosts: list[tuple[str, int, int]], commands: asyncio.StreamReader) -> None:
    """Stand for the hosts (address, port, port here) until the commands end."""
    latency = Latency()
    proxies = [Proxy(latency, host, port) for host, port, _ in hosts]
    print(json.dumps([await proxy.start(here) for proxy, (_, _, here) in zip(proxies, hosts)]), flush=True)
    async for line in commands:
        word, *rest = line.decode().split()
        if word == "delay":
            latency.one_way = float(rest[0]) / 2000
            print(json.dumps(rest[0]), flush=True)
        elif word == "turns":
            print(json.dumps([proxy.turns for proxy in proxies]), flush=True)
            for proxy in proxies:
                proxy.turns = 0
        else:
            print(json.dumps({"unknown": word}), flush=True)


async def _main(arguments: list[str]) -> None:
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    hosts = [argument.split(":") for argument in arguments]
    await serve([(host, int(port), int(here)) for host, port, here in hosts], commands)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
