"""The hub's way to Docker: calls in threads, and the images that servers start from."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import docker.auth
import docker.errors
import docker.tls
import docker.utils
import requests
from docker.api.client import APIClient

from ..core.errors import EngineFault, StartFault
from .launch import image_missing
from .lifecycle import LifecycleSpawner
from .pulls import SILENT, Event, Pulls, Tell, explain

_THREADS = 16
"""Docker calls at once. DockerSpawner has one thread for all users: a slow call holds up everybody."""
_SLOW = frozenset({"stop"})
"""Methods that take seconds have threads of their own, so that they can't hold up a start."""
_TIMEOUT_SECONDS = {"inspect_container": 5, "inspect_image": 10, "logs": 5}
_USUAL_TIMEOUT_SECONDS = 60

# docker-py lets some errors of the libraries below it through as they are: requests' and urllib3's
# derive from OSError or ValueError.
_Errors = (docker.errors.DockerException, OSError, ValueError)


class EngineSpawner(LifecycleSpawner):
    """A `LifecycleSpawner` with Docker: what it does is done here, what is asked for isn't."""

    pull_silence: float

    _local: ClassVar[threading.local] = threading.local()
    _executors: ClassVar[dict[bool, ThreadPoolExecutor]] = {}
    _pulls: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, Pulls]] = WeakKeyDictionary()

    @property
    def pulls(self) -> Pulls:
        """What is being pulled; one for the whole hub."""
        loop = asyncio.get_running_loop()
        if loop not in self._pulls:
            self._pulls[loop] = Pulls(self.log)
        return self._pulls[loop]

    async def pull_image(self, image: str, tell: Tell = lambda news: None) -> dict[str, Any]:
        """Docker's document of the image, pulled first if `pull_policy` says so. Raises StartFault.

        `tell` gets a sentence whenever a pull has news. "skip" (DockerSpawner 14: like "never", but without
        an error where the image isn't) gives an empty document then: creating the container decides.
        """
        policy = self.pull_policy.lower()
        present = await self.find_image(image)
        stale = policy == "always" and not self.pulls.fresh(image)
        if stale or (present is None and policy in ("always", "ifnotpresent")):
            await self._pull(image, tell, present is not None)
            present = await self.find_image(image)
        if present is None and policy != "skip":
            raise image_missing(image)
        return present or {}

    async def _pull(self, image: str, tell: Tell, here: bool) -> None:
        try:
            await self.pulls.pull(image, lambda feed: self.pull_here(image, feed), tell)
        except EngineFault as fault:
            if fault.status is None:
                raise
            raise self._explain(image, fault, here) from fault

    def _explain(self, image: str, fault: EngineFault, here: bool) -> StartFault:
        return explain(image, fault, here=here, silence_seconds=self.pull_silence)

    def pull_here(self, image: str, feed: Callable[[Event], None]) -> None:
        """Pulls in this thread. Raises EngineFault: with status None if Docker is gone, SILENT for silence.

        docker-py's `pull` waits without a limit and takes Docker's errors in the stream for success, so this
        asks for it itself (Engine API 1.41, `POST /images/create`).
        """
        name, tag = docker.utils.parse_repository_tag(image)
        with closing(self._make_client()) as client:
            try:
                registry, _ = docker.auth.resolve_repository_name(name)
                login = docker.auth.get_config_header(client, registry)
                answer = client.post(
                    f"{client.base_url}/v{client.api_version}/images/create",
                    params={"fromImage": name, "tag": tag or "latest"},
                    headers={"X-Registry-Auth": login} if login else {},
                    stream=True,
                    timeout=(_USUAL_TIMEOUT_SECONDS, self.pull_silence),
                )
                with answer:
                    _read_pull(answer, feed)
            except requests.RequestException as error:
                if "timed out" in str(error).lower():
                    raise EngineFault(f"nothing came for {self.pull_silence:.0f} s", SILENT) from error
                raise EngineFault(f"Docker does not answer: {error}") from error
            except _Errors as error:
                raise EngineFault(f"Docker does not answer: {error}") from error

    async def docker(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A method of docker-py's APIClient in a thread. Raises EngineFault, with Docker's status if any."""
        return await self.run(method, lambda client: getattr(client, method)(*args, **kwargs))

    async def run(self, method: str, call: Callable[[APIClient], Any]) -> Any:
        """`call(client)` in a thread; `method` decides on its time limit. Raises EngineFault."""
        slow = method in _SLOW
        if slow not in self._executors:
            name = "docker-slow" if slow else "docker"
            self._executors[slow] = ThreadPoolExecutor(_THREADS, thread_name_prefix=name)
        return await asyncio.wrap_future(self._executors[slow].submit(self.run_here, call, method))

    def run_here(self, call: Callable[[APIClient], Any], method: str = "") -> Any:
        """`call(client)` in this thread: blocks on Docker. Raises EngineFault."""
        try:
            client = self.client
            client.timeout = _TIMEOUT_SECONDS.get(method, _USUAL_TIMEOUT_SECONDS)
            return call(client)
        except docker.errors.APIError as error:
            raise EngineFault(str(error.explanation or error), error.status_code) from error
        except _Errors as error:
            raise EngineFault(f"Docker does not answer: {error}") from error

    @property
    def client(self) -> APIClient:
        """docker-py's client, one a thread: its connections aren't made for being shared."""
        client: APIClient | None = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = self._make_client()
        return client

    def _make_client(self) -> APIClient:
        settings: dict[str, Any] = {"version": "auto", "timeout": 10}
        if self.tls_config:
            settings["tls"] = docker.tls.TLSConfig(**self.tls_config)
        settings |= {**docker.utils.kwargs_from_env(), **self.client_kwargs}
        return APIClient(**settings)


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
