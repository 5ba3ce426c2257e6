"""A spawner whose servers are there at once: they listen in the hub's own process."""

from __future__ import annotations

from typing import Any

from jupyterhub.spawner import Spawner
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler


class Answers(RequestHandler):
    """Says the same at every address."""

    def get(self) -> None:
        self.finish("here")


class QuickSpawner(Spawner):  # type: ignore[misc]
    """A server on the CPU."""

    listening: HTTPServer | None = None

    async def start(self) -> str:
        listener, port = bind_unused_port()
        self.listening = HTTPServer(Application([(".*", Answers)]))
        self.listening.add_socket(listener)
        return f"http://127.0.0.1:{port}"

    async def poll(self) -> int | None:
        return 0 if self.listening is None else None

    async def stop(self, now: bool = False) -> None:
        if self.listening is not None:
            self.listening.stop()
        self.listening = None

    def get_state(self) -> dict[str, Any]:
        return {}
