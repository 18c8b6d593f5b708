"""uvicorn, with a shutdown that waits for nobody."""

import asyncio
import socket
from collections.abc import Sequence

import uvicorn
from starlette.applications import Starlette

from lit_lm.serve.worker import Worker

LAST_SECONDS = 1
"""Time that clients get at a shutdown to receive what ends their requests."""


class HTTPServer(uvicorn.Server):
    """Serves an application and ends with its workers.

    uvicorn alone would wait for the continuations in progress, and then break them off with a traceback.
    """

    def __init__(self, app: Starlette, workers: Sequence[Worker]) -> None:
        super().__init__(uvicorn.Config(app, log_level="warning", server_header=False))
        self.workers = workers

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
