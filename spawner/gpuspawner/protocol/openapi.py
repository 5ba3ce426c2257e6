"""The unix socket's API as an OpenAPI 3.1 document, made from the schemas of `messages`."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from .. import __version__
from ..core.errors import all_refusals
from . import pulls, rules
from .messages import (
    ExitDocument,
    HeartbeatEvent,
    LeaseEvent,
    Message,
    QueuedEvent,
    RefusalMessage,
    RefusedEvent,
    RequestMessage,
    TiersDocument,
)  # fmt: skip
from .stream import WAITED_HEADER

_EVENTS: tuple[type[Message], ...] = (QueuedEvent, LeaseEvent, RefusedEvent, HeartbeatEvent)

_RULES: tuple[tuple[str, str, str, str, type[Message] | None, type[Message] | None], ...] = (
    ("/allowance", "post", "allowance", "What a user may have", rules.WhoAsks, rules.AllowanceDocument),
    ("/offer", "post", "offer", "What each tier offers a user now", rules.WhoAsks, rules.OfferDocument),
    ("/leases/{lease_id}/extend", "post", "extend", "Make a session longer", rules.Extend,
     rules.ExtendedDocument),
    ("/leases/{lease_id}/kernels", "post", "kernels", "Say whether kernels compute", rules.KernelsMessage,
     None),
    ("/pulls", "post", "pulls", "Say how far pulls of images are", pulls.PullsMessage, None),
    ("/servers", "get", "servers", "Since when servers are idle, and when they end", None,
     rules.ServersDocument),
)  # fmt: skip
"""What `hub_routes` and `offer_routes` serve: path, method, name, summary, body and answer."""

_MODELS: tuple[type[Message], ...] = (
    RequestMessage, *_EVENTS, RefusalMessage, TiersDocument, ExitDocument,
    *dict.fromkeys(model for *_, body, answer in _RULES for model in (body, answer) if model is not None),
)  # fmt: skip
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
    rules_paths: Document = {}
    for path, method, name, summary, body, answer in _RULES:
        item = rules_paths.setdefault(path, {"parameters": [lease_id]} if "{lease_id}" in path else {})
        item[method] = _rule(name, summary, body, answer)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "GPU broker, unix socket",
            "version": __version__,
            "description": (
                "The hub asks for GPUs here. Only the broker's user can open the socket. Below /api is the "
                "API of the GPU pages, for accounts of this machine: see /api/openapi.json."
            ),
        },
        "paths": {
            "/leases": {"post": _ask()},
            "/leases/{lease_id}/confirm": {"parameters": [lease_id], "post": _confirm()},
            "/leases/{lease_id}": {"parameters": [lease_id], "delete": _release()},
            "/leases/{lease_id}/exit": {
                "parameters": [lease_id],
                "get": _read("exit", "How the server's container ended that nobody stopped", ExitDocument),
            },
            "/tiers": {"get": _read("tiers", "The tiers and how much of each is free", TiersDocument)},
            "/metrics": {"get": _metrics()},
            **rules_paths,
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


def _rule(name: str, summary: str, body: type[Message] | None, answer: type[Message] | None) -> Document:
    """An operation of the rules; one that is no JSON answers with a calendar."""
    done: Document = {"204": {"description": "It is done"}}
    if answer is not None:
        done = {"200": {"description": summary, "content": _json(answer)}}
    elif body is None:
        done = {"200": {"description": summary, "content": {"text/calendar": {"schema": {"type": "string"}}}}}
    asked = {} if body is None else {"requestBody": {"required": True, "content": _json(body)}}
    return {"operationId": name, "summary": summary, **asked, "responses": {**done, **_refusals()}}


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
