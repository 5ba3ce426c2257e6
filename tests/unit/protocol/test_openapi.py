"""The API's description: it names what the socket serves, and its schemas say what the messages check."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from gpuspawner.broker.api.offer import offer_routes
from gpuspawner.broker.api.pulls import pull_routes
from gpuspawner.broker.api.rules import hub_routes
from gpuspawner.broker.api.socket import make_app
from gpuspawner.core.errors import all_refusals
from gpuspawner.core.model import ContainerPatch
from gpuspawner.protocol.messages import (
    HeartbeatEvent,
    QueuedEvent,
    event_to_line,
    lease_event,
    request_to_json,
)
from gpuspawner.protocol.openapi import openapi
from jsonschema import Draft202012Validator
from tornado.web import RequestHandler

from tests.unit.lease_examples import TRAIN, request

DOCUMENT = openapi()


def validator(schema: dict[str, Any]) -> Draft202012Validator:
    """OpenAPI 3.1 schemas are JSON Schema 2020-12."""
    return Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in DOCUMENT["paths"].items():
        for method in ("get", "post", "delete"):
            if method in item:
                yield path, method, item[method]


def test_the_operations() -> None:
    assert [(path, method, each["operationId"]) for path, method, each in operations()] == [
        ("/leases", "post", "ask"),
        ("/leases/{lease_id}/confirm", "post", "confirm"),
        ("/leases/{lease_id}", "delete", "release"),
        ("/leases/{lease_id}/exit", "get", "exit"),
        ("/tiers", "get", "tiers"),
        ("/metrics", "get", "metrics"),
        ("/allowance", "post", "allowance"),
        ("/offer", "post", "offer"),
        ("/leases/{lease_id}/extend", "post", "extend"),
        ("/leases/{lease_id}/kernels", "post", "kernels"),
        ("/pulls", "post", "pulls"),
        ("/servers", "get", "servers"),
    ]


def test_it_is_what_the_socket_serves() -> None:
    """Each path and method of the description has a handler, and each handler's method is described."""
    unused: Any = None
    routes = [
        *hub_routes(unused, unused, unused),
        *offer_routes(unused, unused, unused, unused),
        *pull_routes(unused, unused),
    ]
    rules = make_app(unused, routes).wildcard_router.rules
    served = {
        (rule.matcher.regex.pattern, method)
        for rule in rules
        for method in ("get", "post", "delete", "put", "patch")
        if getattr(rule.target, method) is not getattr(RequestHandler, method)
    }
    described = set()
    for path, method, _ in operations():
        example = path.replace("{lease_id}", "a" * 32).replace("{name}", "cs231n")
        pattern = next(rule.matcher.regex.pattern for rule in rules if rule.matcher.regex.match(example))
        described.add((pattern, method))
    assert described == served


def test_every_reference_leads_somewhere() -> None:
    found = re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(DOCUMENT))
    assert set(found) - set(DOCUMENT["components"]["schemas"]) == set()
    assert {"RequestMessage", "WantMessage", "TiersDocument"} <= set(found)
    for name, schema in DOCUMENT["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert schema.get("additionalProperties", False) is False, name


def test_every_refusal_is_described() -> None:
    responses = DOCUMENT["paths"]["/leases"]["post"]["responses"]
    for reason, kind in all_refusals().items():
        assert reason in responses[str(kind.status)]["description"]


def test_the_request_s_schema_checks_requests() -> None:
    (content,) = DOCUMENT["paths"]["/leases"]["post"]["requestBody"]["content"].values()
    schema = validator(content["schema"])
    good = json.loads(request_to_json(request("a" * 32)))
    assert schema.is_valid(good)
    for odd in ({"privileged": True}, {"lease_id": "A" * 32}, {"want": {"device_count": 65}}, {"user": ""}):
        assert not schema.is_valid({**good, **odd})


@pytest.mark.parametrize(
    "line",
    [
        event_to_line(HeartbeatEvent()),
        event_to_line(QueuedEvent(position=1, waiting=1, message="1st in line for a GPU")),
        event_to_line(lease_event(TRAIN, ContainerPatch(mounts=({"source": "/x", "read_only": True},)))),
    ],
)
def test_the_stream_s_schema_takes_the_events(line: str) -> None:
    answer = DOCUMENT["paths"]["/leases"]["post"]["responses"]["200"]["content"]["application/x-ndjson"]
    validator(answer["schema"]).validate(json.loads(line))


def test_a_new_document_each_time() -> None:
    openapi()["paths"].clear()
    assert openapi() == DOCUMENT
