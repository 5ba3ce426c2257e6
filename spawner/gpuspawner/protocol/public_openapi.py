"""The API at the service's own address as an OpenAPI 3.1 document, made from the schemas of the messages.

`/services/gpu/api/openapi.json` serves it. A test holds it to the routes and to what they answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic.json_schema import models_json_schema

from .. import __version__
from ..core.errors import all_refusals
from . import classes, history, pulls, rules
from .messages import Message, RefusalMessage, TiersDocument
from .paging import DEFAULT_LIMIT, MOST
from .public import ExtendLease, LeaseDone, LeaseReason, VisibleStatus

Document = dict[str, Any]
CALENDAR = "text/calendar"
_REF = "#/components/schemas/{model}"
_KEY = "Idempotency-Key"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation. `scope` is that of the hub, "" for everybody with access; each also by group.

    `answer` is a message, a media type, or None for 204; `statuses` are those of success, `query` the names
    in `_QUERY` that an address may have.
    """

    path: str
    method: str
    name: str
    summary: str
    scope: str = ""
    body: type[Message] | None = None
    answer: type[Message] | str | None = None
    statuses: tuple[int, ...] = (200,)
    needs_body: bool = True
    query: tuple[str, ...] = ()


_READ, _RESERVE, _ADMIN = "custom:gpu:read", "custom:gpu:reserve", "custom:gpu:admin"
_PAGE = ("limit", "cursor")
OPERATIONS: tuple[Operation, ...] = (
    Operation("/status", "get", "status", "Devices, leases and queue, as far as the sender may see them",
              answer=VisibleStatus, query=_PAGE),
    Operation("/tiers", "get", "tiers", "The tiers and how much of each is free", answer=TiersDocument),
    Operation("/images", "get", "images", "Which images are on the machine, and which are pulled now", _READ,
              answer=pulls.ImagesDocument),
    Operation("/leases/{lease_id}", "delete", "stop", "Stop a server, or leave the queue",
              body=LeaseReason, answer=LeaseDone, statuses=(200, 202), needs_body=False),
    Operation("/leases/{lease_id}/extend", "post", "extend", "Make a session longer",
              body=ExtendLease, answer=LeaseDone),
    Operation("/leases/{lease_id}/cpu", "post", "use_cpu", "Give the GPU back and go on with CPU",
              body=LeaseReason, answer=LeaseDone, statuses=(202,), needs_body=False),
    Operation("/leases/{lease_id}/end", "post", "end", "End a server that the hub doesn't know", _ADMIN,
              rules.EndUnknown),
    Operation("/leases/{lease_id}/wake", "post", "wake", "In turns: want a GPU now",
              body=LeaseReason, answer=LeaseDone, needs_body=False),
    Operation("/leases/{lease_id}/yield", "post", "give_up_turn", "In turns: give up the turn",
              body=LeaseReason, answer=LeaseDone, needs_body=False),
    Operation("/quotas", "get", "quotas", "What users and groups may have", _READ,
              answer=rules.QuotasDocument, query=_PAGE),
    Operation("/quotas", "post", "change_quota", "Change a quota at run time", _ADMIN, rules.QuotaChange),
    Operation("/quotas", "delete", "remove_quota", "Take changes of a quota back", _ADMIN,
              rules.QuotaRemoval),
    Operation("/grants", "post", "grant", "Give GPU-hours in the present period", _ADMIN, rules.Grant),
    Operation("/drains", "get", "drains", "Devices and machines on which nothing new is placed", _READ,
              answer=rules.DrainsDocument, query=_PAGE),
    Operation("/drains", "post", "drain", "Place nothing new on a device or a machine", _ADMIN,
              rules.DrainChange),
    Operation("/drains", "delete", "undrain", "Place servers on a device or a machine again", _ADMIN,
              rules.DrainChange),
    Operation("/report", "get", "report", "Who used how many GPU-hours", _READ, answer=rules.ReportDocument,
              query=("by", "start", "end", "timezone", *_PAGE)),
    Operation("/sessions", "get", "sessions", "Lab sessions", _READ, answer=rules.SessionsDocument,
              query=_PAGE),
    Operation("/sessions", "post", "save_session", "Add a lab session, or change it", _RESERVE,
              rules.SessionChange, rules.SessionDocument),
    Operation("/sessions/{name}", "delete", "cancel_session", "End a lab session for good", _RESERVE,
              rules.SessionCancel),
    Operation("/sessions/calendar", "get", "calendar", "Lab sessions as an iCalendar", _READ,
              answer=CALENDAR),
    Operation("/sessions/calendar/address", "get", "calendar_address",
              "Where calendar programs subscribe to lab sessions", _READ, answer=rules.CalendarAddress,
              query=("group",)),
    Operation("/sessions/calendar", "post", "import_calendar", "Take over a calendar", _RESERVE,
              rules.CalendarImport, rules.SessionsDocument),
    Operation("/audit", "get", "audit", "Who changed what, when and why", _READ,
              answer=history.AuditDocument, query=("author", "action", *_PAGE)),
    Operation("/timeline", "get", "timeline", "When which server held which devices", _READ,
              answer=history.TimelineDocument, query=("start", "end", "user", "device", *_PAGE)),
    Operation("/guard", "get", "guard", "The processes that the guard ended", _READ,
              answer=history.GuardDocument, query=_PAGE),
    Operation("/doctor", "get", "findings", "What gpuspawner doctor found", _READ,
              answer=history.DoctorDocument),
    Operation("/doctor", "post", "check", "Begin a check of the machine", _READ, history.CheckNow,
              history.DoctorDocument, needs_body=False),
    Operation("/classes", "get", "classes", "The groups that the sender may see", _READ,
              answer=classes.ClassesDocument, query=_PAGE),
    Operation("/classes/{group}", "get", "roster", "The members of a class and their servers", _READ,
              answer=classes.RosterDocument, query=_PAGE),
    Operation("/classes/{group}/stop", "post", "stop_servers", "Stop servers of a class", _RESERVE,
              classes.StopServers, classes.DoneDocument),
    Operation("/classes/{group}/extend", "post", "extend_servers", "Make sessions of a class longer",
              _RESERVE, classes.ExtendServers, classes.DoneDocument),
    Operation("/classes/{group}/message", "post", "tell_class", "Give a class a notice", _RESERVE,
              classes.ClassMessage),
    Operation("/classes/{group}/message", "delete", "withdraw_message", "Withdraw a class's notice",
              _RESERVE, classes.MessageRemoval, needs_body=False),
)  # fmt: skip
_PARAMETERS: dict[str, Document] = {
    "lease_id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9._-]{0,62}$"},
    "group": {"type": "string", "minLength": 1},
}
_TIME: Document = {"type": "string", "format": "date-time"}
_NAME: Document = {"type": "string", "maxLength": 255}
_QUERY: dict[str, tuple[str, Document]] = {
    "limit": ("How many entries the answer has at most, all lists together",
              {"type": "integer", "minimum": 1, "maximum": MOST, "default": DEFAULT_LIMIT}),
    "cursor": ("The `next` of the page before", {"type": "string"}),
    "start": ("Only what reaches beyond this time", _TIME),
    "end": ("Only what begins before this time", _TIME),
    "user": ("Only of this user", _NAME),
    "device": ("Only of this device, by its UUID", _NAME),
    "author": ("Only of this author", _NAME),
    "action": ("Only this action", _NAME),
    "group": ("Only of this group", _NAME),
    "by": ("What each line is for", {"enum": ["user", "group", "tier", "day"]}),
    "timezone": ("Where a day begins and ends, like Europe/Berlin", {"type": "string"}),
}  # fmt: skip


def public_openapi(prefix: str) -> Document:
    """The whole document for a service at `prefix` ("/services/gpu/"): plain JSON values."""
    messages = dict.fromkeys(
        each
        for operation in OPERATIONS
        for each in (operation.body, operation.answer, RefusalMessage)
        if isinstance(each, type)
    )
    _, schemas = models_json_schema([(model, "validation") for model in messages], ref_template=_REF)
    for model in messages:
        _without_author(schemas["$defs"][model.__name__])
    paths: Document = {}
    for operation in OPERATIONS:
        item = paths.setdefault(operation.path, _path_item(operation.path))
        item[operation.method] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "GPU pages",
            "version": __version__,
            "description": (
                "A JupyterHub API token of a user or service in the Authorization header. Each scope can be "
                "limited to a group: custom:gpu:read!group=NAME. Each change is in the audit log."
            ),
        },
        "servers": [{"url": f"{prefix}api"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {
                "token": {
                    "type": "apiKey", "in": "header", "name": "Authorization",
                    "description": "'token ' and a token of JupyterHub",
                }
            },
        },
    }  # fmt: skip


def _without_author(schema: Document) -> None:
    """The hub names the author of a change; an author in the request is ignored."""
    if "author" in schema.get("required", ()) and "kind" not in schema["properties"]:
        schema["properties"].pop("author")
        schema["required"].remove("author")
        schema.pop("additionalProperties", None)


def _path_item(path: str) -> Document:
    named = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _PARAMETERS[name]} for name in named
    ]
    return {"parameters": parameters} if parameters else {}


def _operation(operation: Operation) -> Document:
    writes = operation.method != "get"
    described: Document = {"operationId": operation.name, "summary": operation.summary}
    if operation.scope:
        described["description"] = f"Needs the scope {operation.scope}."
    if operation.query:
        described["parameters"] = [_in_query(name) for name in operation.query]
    if writes:
        described["parameters"] = [
            {
                "name": _KEY, "in": "header", "required": False,
                "description": "The sender's id of the request: a repetition changes nothing",
                "schema": {"type": "string", "minLength": 1, "maxLength": 128},
            }
        ]  # fmt: skip
    if operation.body is not None:
        described["requestBody"] = {"required": operation.needs_body, "content": _json(operation.body)}
    return {**described, "responses": {**_done(operation), **_refusals(writes)}}


def _in_query(name: str) -> Document:
    text, schema = _QUERY[name]
    return {"name": name, "in": "query", "required": False, "description": text, "schema": schema}


def _done(operation: Operation) -> Document:
    if operation.answer is None:
        return {"204": {"description": "It is done"}}
    if isinstance(operation.answer, str):
        content: Document = {operation.answer: {"schema": {"type": "string"}}}
    else:
        content = _json(operation.answer)
    return {
        str(status): {"description": operation.summary, "content": content} for status in operation.statuses
    }


def _refusals(writes: bool) -> Document:
    """The refusals by HTTP status, with those of the login."""
    reasons: dict[int, list[str]] = {
        401: ["login_required"],
        403: ["xsrf_missing", "foreign_origin"],
        404: ["not_found"],
    }
    for reason, kind in sorted(all_refusals().items()):
        reasons.setdefault(kind.status, []).append(reason)
    reasons[503] = [*reasons.get(503, []), "hub_unavailable"]
    if not writes:
        reasons.pop(429, None)
    return {
        str(status): {"description": f"Refused: {' or '.join(said)}", "content": _json(RefusalMessage)}
        for status, said in sorted(reasons.items())
    }


def _json(model: type[Message]) -> Document:
    return {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}
