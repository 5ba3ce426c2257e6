"""What a user or group may have: the place of quotas. Pure; asked before a request joins the queue."""

from __future__ import annotations

import re

from ...core.errors import BadOption
from ...core.model import GpuRequest, Mode

MAX_DEVICES = 64
_LEASE_ID = re.compile(r"[0-9a-f]{32}")
_MAX_NAME = 255


def check(request: GpuRequest) -> None:
    """Refuse a request that can't be served by anybody's rules.

    Raises BadOption: for a lease id, hub, user, server, tier, model, group or device count that is not well
    formed. What the request asks of the machine is not looked at here: capacity is the allocator's.
    """
    if not isinstance(request.lease_id, str) or not _LEASE_ID.fullmatch(request.lease_id):
        raise BadOption("The lease id must be 32 hexadecimal digits: start the server again.")
    _check_name("hub", request.hub)
    _check_name("user", request.user)
    _check_name("server", request.server, may_be_empty=True)
    _check_name("tier", request.tier)
    if request.want.model is not None:
        _check_name("model", request.want.model)
    for group in request.groups:
        _check_name("group", group)
    for what, name in (("pool", request.want.pool), ("MIG profile", request.want.mig_profile)):
        if name is not None:
            _check_name(what, name)
    _check_share(request)
    count = request.want.device_count
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_DEVICES:
        raise BadOption(f"The number of GPUs is {count!r}: choose from 1 to {MAX_DEVICES}.")


def _check_share(request: GpuRequest) -> None:
    if request.want.mode is Mode.TURNS:
        raise BadOption("This version has no turns: choose another tier.")
    if request.want.mode is not Mode.SLICE:
        if request.want.memory_bytes is not None or request.want.compute_percent is not None:
            raise BadOption("Only a slice has a size of its own: choose another tier.")
        return
    if request.want.device_count != 1:
        raise BadOption("A slice is of one GPU: choose another tier.")
    size, percent = request.want.memory_bytes, request.want.compute_percent
    if (size is not None and size <= 0) or (percent is not None and not 0 < percent <= 100):
        raise BadOption("The size of the slice can't be used: choose another tier.")


def _check_name(what: str, value: object, *, may_be_empty: bool = False) -> None:
    if not isinstance(value, str):
        raise BadOption(f"The {what} is not text: start the server again.")
    if not value and not may_be_empty:
        raise BadOption(f"The {what} is missing: start the server again.")
    if len(value) > _MAX_NAME:
        raise BadOption(f"The {what} is longer than {_MAX_NAME} characters: choose a shorter one.")
    if not value.isprintable():
        raise BadOption(f"The {what} {value!r} has characters that can't be printed: choose another one.")
