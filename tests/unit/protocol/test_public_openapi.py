"""The public API's description is held to the code: the same routes and methods, and answers that fit."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import pytest
import schemathesis
from gpuspawner.broker.api.answers import About, View
from gpuspawner.broker.api.public.actions import Actions
from gpuspawner.broker.api.public.classes import class_routes
from gpuspawner.broker.api.public.history import HistoryTools, history_routes
from gpuspawner.broker.api.public.hub_servers import HubServers
from gpuspawner.broker.api.public.images import image_routes
from gpuspawner.broker.api.public.limits import WriteLimits
from gpuspawner.broker.api.public.rules import joined, public_rules
from gpuspawner.broker.api.turns import TurnService
from gpuspawner.broker.observe.checkup import Checkup, Line
from gpuspawner.broker.observe.sampler import Sampler
from gpuspawner.broker.pages.own.desk import BrokerDesk
from gpuspawner.broker.pages.routes import make_handlers
from gpuspawner.core.model import Tier
from gpuspawner.core.want import Want
from gpuspawner.node.api import NodeFacts
from gpuspawner.protocol.public_openapi import OPERATIONS, public_openapi
from gpuspawner.protocol.pulls import ImageDocument, PullMessage
from hypothesis import HealthCheck, settings
from jsonschema import Draft202012Validator
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tornado.web import RequestHandler

from tests.unit.broker.test_pages_handlers import PREFIX, FakeBroker, serving
from tests.unit.class_bench import ClassBench

DOCUMENT = public_openapi(PREFIX)
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
]  # fmt: skip


IMAGES = (
    ImageDocument(image="lab:1", here=True, size_bytes=5_200_000_000, pull=None),
    ImageDocument(
        image="lab:2", here=None, size_bytes=None,
        pull=PullMessage(image="lab:2", message="Pulling image lab:2", percent=7, waiting=1),
    ),
)  # fmt: skip


class NoTurns:
    """No pool is used in turns."""

    def views(self) -> dict[str, Any]:
        return {}


class Service:
    """Everything that the service has, in a thread of its own."""

    url = ""

    def __init__(self, bench: ClassBench) -> None:
        self.bench = bench
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.stack = AsyncExitStack()
        self.patterns: set[tuple[str, str]] = set()

    def do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    async def open(self) -> None:
        bench = self.bench
        await bench.open()
        broker = bench.broker
        turns: Any = NoTurns()
        act = TurnService(broker.allocator, turns).act
        self.checkup = Checkup(lambda: (Line("problem", "Docker", "it is down", "start it"),))
        more = joined(
            public_rules(broker.site, broker.rules, broker.endings),
            class_routes(bench.tools),
            image_routes(lambda: IMAGES),
            history_routes(
                HistoryTools(broker.site, broker.rules, broker.endings, broker.ledger, self.checkup)
            ),
        )

        def make_desk(api_url: str) -> BrokerDesk:
            tiers = (Tier("gpu", "One GPU", want=Want(1)), Tier("cpu", "CPU"))
            actions = Actions(broker.rules, HubServers(api_url), broker.allocator.lease, tiers, act)
            return BrokerDesk(broker.rules, broker.ledger, Sampler(dict), actions)

        desk = make_desk("http://127.0.0.1:9")
        for pattern, handler, *_ in make_handlers(
            FakeBroker(), PREFIX, desk=desk, hub_auth=object(), more=more
        ):  # type: ignore[arg-type]
            for method in ("get", "post", "delete"):
                if getattr(handler, method) is not getattr(RequestHandler, method):
                    self.patterns.add((pattern, method))
        about = About((), False, broker.site.metrics, dict, dict, tuple, lambda: NodeFacts("here"))
        view = View(broker.allocator, about)
        pages = await self.stack.enter_async_context(serving(more, make_desk, view))
        self.url = pages.url

    async def close(self) -> None:
        await self.stack.aclose()
        self.checkup.close()
        await self.bench.broker.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, new_times: Any) -> Iterator[Service]:
    times = new_times()
    times.wall = datetime(2026, 11, 26, tzinfo=UTC)
    found = Service(ClassBench(tmp_path_factory.mktemp("service"), times))
    found.thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WriteLimits, "wait_seconds", lambda self, sender: 0.0)
        found.do(found.open())
        yield found
        found.do(found.close())
    found.loop.call_soon_threadsafe(found.loop.stop)
    found.thread.join(10)
    found.loop.close()
    found.bench.broker.loop.close()


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in DOCUMENT["paths"].items():
        for method in ("get", "post", "delete"):
            if method in item:
                yield path, method, item[method]


def test_each_schema_is_one_and_each_name_is_used_once() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    names = [operation.name for operation in OPERATIONS]
    assert len(set(names)) == len(names)
    used = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(DOCUMENT)))
    assert used == set(DOCUMENT["components"]["schemas"])


def test_nobody_is_asked_for_an_author() -> None:
    for _, _, operation in operations():
        for content in operation.get("requestBody", {}).get("content", {}).values():
            name = content["schema"]["$ref"].rpartition("/")[2]
            assert "author" not in DOCUMENT["components"]["schemas"][name].get("required", ())


EXAMPLES = {
    "([0-9a-f]{32})": "a" * 32, "([^/]+)": "cs231n",
    "([a-z0-9][a-z0-9._-]{0,62})": "lab",
}  # fmt: skip


def test_it_names_what_is_served_and_nothing_else(service: Service) -> None:
    served = set()
    for pattern, method in service.patterns:
        inside = pattern.partition(f"{PREFIX}api")[2]
        if not inside or inside in ("/.*", "/openapi.json"):
            continue
        for group, example in EXAMPLES.items():
            inside = inside.replace(group, example)
        served.add((inside, method))
    described = [
        (re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), path, method) for path, method, _ in operations()
    ]
    missing = [
        (path, method) for path, method in sorted(served)
        if not any(pattern.fullmatch(path) and method == each for pattern, _, each in described)
    ]  # fmt: skip
    extra = [
        (path, method) for pattern, path, method in described
        if not any(pattern.fullmatch(found) and method == each for found, each in served)
    ]  # fmt: skip
    assert (missing, extra) == ([], [])


@SCHEMA.include(path_regex=".*").parametrize()
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_it_answers_as_described(case: Any, service: Service) -> None:
    """Whatever fits the description, and much that doesn't, is answered in one of the described ways."""
    headers = {"Authorization": "token noether-token"}
    answer = case.call(base_url=f"{service.url}api", headers=headers)
    if answer.status_code == 503:  # the hub isn't there for a stop; the answer itself must fit
        case.validate_response(answer, checks=CHECKS[1:])
    else:
        case.validate_response(answer, checks=CHECKS)
