"""uvicorn, with limits on what may take time: the head of a request, reading the answer, and the shutdown."""

import asyncio
import socket
import time
from collections.abc import Sequence
from typing import cast

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from lit_lm.serve.worker import Worker

IDLE_SECONDS = 20
"""Time in which a client must have sent the head of a request, and read a part of its answer."""
LAST_SECONDS = 1
"""Time that clients get at a shutdown to receive what ends their requests."""


class _Protocol(H11Protocol):
    """A connection."""

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP. A request that has begun is over then; uvicorn would try to answer it, too."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        super().send_400_response(msg)


class HTTPServer(uvicorn.Server):
    """Serves an application and ends with its workers.

    uvicorn alone waits without a limit for the head of a request, and for clients that do not read. At a shutdown, it
    waits for the continuations in progress, and then breaks them off with a traceback.
    """

    def __init__(self, app: Starlette, workers: Sequence[Worker]) -> None:
        super().__init__(uvicorn.Config(app, http=_Protocol, ws="none", log_level="warning", server_header=False))
        self.workers = workers
        self._idle: dict[tuple[_Protocol, object, int], float] = {}
        """Connections that wait for their client, the last request of each, the bytes it has to read, and since when.
        """

    async def on_tick(self, counter: int) -> bool:
        """Close connections whose client has neither sent nor read for too long; called every 0.1 seconds."""
        now, connections = time.monotonic(), cast(set[_Protocol], self.server_state.connections)
        idle = [
            (each, each.cycle, each.transport.get_write_buffer_size())
            for each in connections
            if each.cycle is None or each.cycle.response_complete or each.flow.write_paused
        ]
        self._idle = {key: self._idle.get(key, now) for key in idle}
        for (connection, *_), since in self._idle.items():
            if now - since > IDLE_SECONDS:
                connection.transport.abort()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the requests in progress with an error, then the server."""
        for worker in self.workers:
            worker.stop()
        asyncio.get_running_loop().call_later(LAST_SECONDS, self._cut)
        await super().shutdown(sockets)

    def _cut(self) -> None:
        """Close what is still open: connections that send no request, or do not read their answer."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()
