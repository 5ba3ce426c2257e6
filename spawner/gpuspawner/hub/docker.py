"""The hub's access to Docker: one client with one connection pool, calls in threads, errors as EngineFault.

"Unknown" never counts as "gone": only Docker's 404 means that a container or an image doesn't exist.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import Any, TypeVar

import docker.auth
import docker.errors
import docker.tls
import docker.utils
import requests
from docker.api.client import APIClient
from docker.transport import UnixHTTPAdapter

from ..core.errors import EngineFault
from ..protocol.call import Call
from .docker_answers import log_end
from .pulls import SILENT, Cancel, Event

THREADS = 16
"""Docker calls at the same time. DockerSpawner has one thread for all users: a slow call delays everybody."""
_SLOW = frozenset({"stop"})
"""Methods that take seconds have their own threads, so that they can't delay a start."""
_TIMEOUT_SECONDS = {
    "inspect_container": 5, "inspect_image": 10, "logs": 5, "service_logs": 5, "containers": 10,
}  # fmt: skip
_USUAL_TIMEOUT_SECONDS = 60
GONE_SECONDS = 60.0
"""How long a removal in progress may take before it counts as failed."""
_PAUSE_SECONDS = 0.1
_TAIL_LINES = 5

# docker-py doesn't convert some errors of the libraries that it uses: requests' and urllib3's
# derive from OSError or ValueError.
_Errors = (docker.errors.DockerException, OSError, ValueError)

_T = TypeVar("_T")


class DockerEngine:
    """One Docker Engine for a whole hub. Every method raises EngineFault, with Docker's status if any.

    All threads share one pool of connections, so the hub never has more sockets than simultaneous calls
    (2 x THREADS). By default, docker-py (7.1) keeps up to 25 pools per client, one for each requested
    address: with a client for each thread, 300 starts left 730 idle sockets.
    """

    def __init__(
        self, client_kwargs: Mapping[str, Any] | None = None, tls_config: Mapping[str, Any] | None = None
    ) -> None:
        settings: dict[str, Any] = {"version": "auto", "num_pools": 1}
        if tls_config:
            settings["tls"] = docker.tls.TLSConfig(**tls_config)
        self._settings = {**settings, **docker.utils.kwargs_from_env(), **(client_kwargs or {})}
        self._lock = threading.Lock()
        self._clients: dict[float, APIClient] = {}
        self._pool: _OnePool | None = None
        self._executors = {
            slow: ThreadPoolExecutor(THREADS, thread_name_prefix="docker-slow" if slow else "docker")
            for slow in (False, True)
        }

    # ---- calls

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of docker-py's APIClient by name, in a thread."""
        executor = self._executors[method in _SLOW]
        return await asyncio.wrap_future(executor.submit(self.call_here, method, *args, **kwargs))

    async def run(self, work: Callable[[Call], _T]) -> _T:
        """Runs `work(call)` in a thread, for several calls that belong together."""
        return await asyncio.wrap_future(self._executors[False].submit(work, self.call_here))

    def call_here(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of docker-py's APIClient by name, in this thread; blocks on Docker."""
        with _engine_faults():
            client = self.client(_TIMEOUT_SECONDS.get(method, _USUAL_TIMEOUT_SECONDS))
            return getattr(client, method)(*args, **kwargs)

    async def read(self, method: str, *args: Any, **kwargs: Any) -> bytes:
        """Calls a method whose answer is a stream, in a thread, and returns all of it."""

        def work() -> bytes:
            with _engine_faults():
                stream = getattr(self.client(_TIMEOUT_SECONDS.get(method, _USUAL_TIMEOUT_SECONDS)), method)
                return b"".join(stream(*args, **kwargs))

        return await asyncio.wrap_future(self._executors[False].submit(work))

    def client(self, timeout_seconds: float = _USUAL_TIMEOUT_SECONDS) -> APIClient:
        """docker-py's client with this time limit; all of them share one pool of connections.

        The first call asks Docker for its version. Raises docker-py's errors.
        """
        with self._lock:
            client = self._clients.get(timeout_seconds)
            if client is None:
                known = next(iter(self._clients.values()), None)
                client = self._make_client(timeout_seconds, known.api_version if known else None)
                self._share_pool(client)
                self._clients[timeout_seconds] = client
            return client

    def close(self) -> None:
        """Closes all connections and ends the threads; for tools and tests.

        A hub keeps them until it ends.
        """
        for executor in self._executors.values():
            executor.shutdown()
        with self._lock:
            for client in self._clients.values():
                client.close()
            self._clients.clear()
            self._pool = None

    # ---- containers and images

    async def find_container(self, container: str) -> dict[str, Any] | None:
        """Docker's document of a container by name or id; None only if Docker says that there is none."""
        return await self._find("inspect_container", container)

    async def find_image(self, image: str) -> dict[str, Any] | None:
        """Docker's document of an image; None only if Docker says that there is none."""
        return await self._find("inspect_image", image)

    async def stop_container(self, container: str, grace_seconds: int) -> None:
        """Sends SIGTERM, then SIGKILL after `grace_seconds`. No error if the container is gone."""
        try:
            await self.call("stop", container, timeout=grace_seconds)
        except EngineFault as fault:
            if fault.status != 404:
                raise

    async def remove_container(self, container: str) -> None:
        """Kills and removes a container and its anonymous volumes, and waits until Docker says it is gone.

        409 is Docker's "removal is already in progress": it is repeated until 404, for at most GONE_SECONDS.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + GONE_SECONDS
        while True:
            try:
                await self.call("remove_container", container, v=True, force=True)
                return
            except EngineFault as error:
                if error.status == 404:
                    return
                if error.status != 409 or loop.time() > deadline:
                    raise
            await asyncio.sleep(_PAUSE_SECONDS)

    async def log_tail(self, container: str, secret: str = "") -> str:
        """The last log lines of a container, without `secret`; empty if they can't be read."""
        raw: Any = b""
        with suppress(EngineFault):
            raw = await self.call("logs", container, stdout=True, stderr=True, tail=_TAIL_LINES)
        return log_end(raw, secret) if isinstance(raw, bytes) else ""

    def pull_here(
        self, image: str, feed: Callable[[Event], None], cancel: Cancel, silence_seconds: float
    ) -> None:
        """Pulls in this thread, with its own connection, until it is done or `cancel` is set.

        Raises EngineFault: status None if Docker is gone, SILENT if no data came for `silence_seconds`.
        docker-py's `pull` waits without a limit and ignores Docker's errors in the stream, so this method
        sends the request itself (Engine API 1.41, `POST /images/create`). Docker ends a pull whose connection
        closes.
        """
        name, tag = docker.utils.parse_repository_tag(image)
        with _engine_faults(silence_seconds), self._own_client() as client:
            registry, _ = docker.auth.resolve_repository_name(name)
            login = docker.auth.get_config_header(client, registry)
            answer = client.post(
                f"{client.base_url}/v{client.api_version}/images/create",
                params={"fromImage": name, "tag": tag or "latest"},
                headers={"X-Registry-Auth": login} if login else {},
                stream=True,
                timeout=(_USUAL_TIMEOUT_SECONDS, silence_seconds),
            )
            with answer:
                cancel.then(lambda: _shut_down(answer))
                _read_pull(answer, feed)

    # ---- private

    async def _find(self, method: str, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = await self.call(method, name)
        except EngineFault as fault:
            if fault.status == 404:
                return None
            raise
        return found

    def _own_client(self) -> closing[APIClient]:
        return closing(self._make_client(_USUAL_TIMEOUT_SECONDS, None))

    def _make_client(self, timeout_seconds: float, version: str | None) -> APIClient:
        settings = {**self._settings, "timeout": timeout_seconds}
        return APIClient(**({**settings, "version": version} if version else settings))

    def _share_pool(self, client: APIClient) -> None:
        """Makes the client use the shared pool. Over TCP, requests already keeps one pool for each host."""
        own = client.get_adapter(client.base_url)
        if isinstance(own, UnixHTTPAdapter):
            if self._pool is None:
                self._pool = _OnePool(own.socket_path, max_pool_size=2 * THREADS)
            client.mount(client.base_url, self._pool)
            own.close()


class _OnePool(UnixHTTPAdapter):
    """docker-py's adapter for a unix socket, but with one pool for all addresses."""

    def get_connection(self, url: Any, proxies: Any = None) -> Any:
        """The one pool; docker-py (7.1) makes one for each `url`."""
        return super().get_connection("http+docker://localhost", proxies)


@contextmanager
def _engine_faults(silence_seconds: float | None = None) -> Iterator[None]:
    """Converts the errors of docker-py, and of the libraries that it uses, to EngineFault.

    `silence_seconds` is the time limit of a stream: a timeout is then SILENT.
    """
    try:
        yield
    except docker.errors.APIError as error:
        raise EngineFault(str(error.explanation or error), error.status_code) from error
    except _Errors as error:
        timed_out = isinstance(error, requests.RequestException) and "timed out" in str(error).lower()
        if silence_seconds is not None and timed_out:
            raise EngineFault(f"no data came for {silence_seconds:.0f} s", SILENT) from error
        raise EngineFault(f"Docker does not answer: {error}") from error


def calls_of(client: APIClient) -> Call:
    """A call function for the caller's own client, with its errors as EngineFault; for tools."""

    def call(method: str, *args: Any, **kwargs: Any) -> Any:
        with _engine_faults():
            return getattr(client, method)(*args, **kwargs)

    return call


def _shut_down(answer: requests.Response) -> None:
    """Wakes the thread that reads the stream; closing the response alone would not."""
    connection: Any = getattr(answer.raw, "connection", None)
    stream = getattr(connection, "sock", None)
    if stream is not None:
        with suppress(OSError):
            stream.shutdown(socket.SHUT_RDWR)


def _read_pull(answer: requests.Response, feed: Callable[[Event], None]) -> None:
    """Reads Docker's events to their end. Raises EngineFault for the error that Docker reports."""
    if answer.status_code >= 400:
        raise EngineFault(_message(answer), answer.status_code)
    for line in answer.iter_lines():
        event = json.loads(line) if line.strip() else {}
        if "error" in event or "errorDetail" in event:
            detail = event.get("errorDetail") or {}
            raise EngineFault(
                str(detail.get("message") or event.get("error")), int(detail.get("code") or 500)
            )
        feed(event)


def _message(answer: requests.Response) -> str:
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:300]
