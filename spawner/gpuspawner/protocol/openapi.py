"""The unix socket's API as an OpenAPI 3.1 document, made from the schemas of `messages`."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from .. import __version__
from ..core.errors import all_refusals
from .messages import (
    HeartbeatEvent,
    LeaseEvent,
    Message,
    QueuedEvent,
    RefusalMessage,
    RefusedEvent,
    RequestMessage,
    StatusDocument,
    TiersDocument,
)  # fmt: skip
from .stream import WAITED_HEADER

_EVENTS: tuple[type[Message], ...] = (QueuedEvent, LeaseEvent, RefusedEvent, HeartbeatEvent)

_MODELS: tuple[type[Message], ...] = (RequestMessage, *_EVENTS, RefusalMessage, StatusDocument, TiersDocument)
_REF = "#/components/schemas/{model}"

Document = dict[str, Any]


def openapi() -> Document:
    """The whole document: plain JSON values, a new document for each call."""
    _, schemas = models_json_schema([(model, "validation") for model in _MODELS], ref_template=_REF)
    lease_id = {
        "name": "lease_id",
        "in": "path",
        "required": True,
        "schema": schemas["$defs"]["RequestMessage"]["properties"]["lease_id"],
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "GPU broker, unix socket",
            "version": __version__,
            "description": "The hub asks for GPUs here. Only the broker's user can open the socket.",
        },
        "paths": {
            "/leases": {"post": _ask()},
            "/leases/{lease_id}/confirm": {"parameters": [lease_id], "post": _confirm()},
            "/leases/{lease_id}": {"parameters": [lease_id], "delete": _release()},
            "/status": {"get": _read("status", "Devices, leases and queue", StatusDocument)},
            "/tiers": {"get": _read("tiers", "The tiers and how much of each is free", TiersDocument)},
            "/metrics": {"get": _metrics()},
        },
        "components": {"schemas": schemas["$defs"]},
    }


def _ask() -> Document:
    events = {
        "oneOf": [_ref(model) for model in _EVENTS],
        "discriminator": {
            "propertyName": "event",
            "mapping": {str(model.model_fields["event"].default): _ref(model)["$ref"] for model in _EVENTS},
        },
    }
    return {
        "operationId": "ask",
        "summary": "Ask for a lease, wait for it, and hold it",
        "description": (
            "The answer is a stream with one event per line. The open connection is the hold: if it closes "
            "before the server uses the lease, the place in the queue or the reservation is freed. "
            "A request with the same lease_id again refers to the same lease. A refusal "
            "that takes longer than a heartbeat is an "
            "event of the stream."
        ),
        "parameters": [
            {
                "name": WAITED_HEADER,
                "in": "header",
                "required": False,
                "description": "Seconds since the first request for this lease, over all connections",
                "schema": {"type": "number", "minimum": 0, "default": 0},
            }
        ],
        "requestBody": {"required": True, "content": _json(RequestMessage)},
        "responses": {
            "200": {"description": "The stream", "content": {"application/x-ndjson": {"schema": events}}},
            **_refusals(),
        },
    }


def _confirm() -> Document:
    return {
        "operationId": "confirm",
        "summary": "Ask right before `docker start` whether the lease is still valid",
        "responses": {"204": {"description": "It is held and may be used"}, **_refusals("409")},
    }


def _release() -> Document:
    return {
        "operationId": "release",
        "summary": "Say that the server was stopped; a lease that nobody knows has ended already",
        "responses": {"202": {"description": "The ledger says that it ends"}, **_refusals("503")},
    }


def _read(name: str, summary: str, model: type[Message]) -> Document:
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": summary, "content": _json(model)}},
    }


def _metrics() -> Document:
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "operationId": "metrics",
        "summary": "Prometheus' text format",
        "responses": {"200": {"description": "The metrics", "content": text}},
    }


def _refusals(*only: str) -> Document:
    """The refusals by HTTP status: all of them, or only those of `only`."""
    reasons: dict[str, list[str]] = {}
    for reason, kind in sorted(all_refusals().items()):
        reasons.setdefault(str(kind.status), []).append(reason)
    return {
        status: {"description": f"Refused: {' or '.join(said)}", "content": _json(RefusalMessage)}
        for status, said in sorted(reasons.items())
        if not only or status in only
    }


def _json(model: type[Message]) -> Document:
    return {"application/json": {"schema": _ref(model)}}


def _ref(model: type[Message]) -> Document:
    return {"$ref": _REF.format(model=model.__name__)}
