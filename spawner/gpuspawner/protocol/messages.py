"""All messages between hub and broker as pydantic models, with checks, error sentences and API description.

Nothing is coerced, unknown keys are refused. Both ends use this module, so a field that one end adds and the
other doesn't know is an error that a test finds, not a value that is lost. Sizes are bytes, percentages
0-100, times ISO 8601 in UTC with "Z". A field's `description` also ends the sentence "<field> must be ...".
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    model_validator,
)  # fmt: skip
from pydantic_core import ErrorDetails, PydanticCustomError

from ..core.disk import DiskState
from ..core.errors import BadOption, Refusal
from ..core.machine import MachineState
from ..core.model import ContainerPatch, GpuRequest, Guarantee, Lease, LeaseState
from ..core.text import printable
from ..core.want import Mode, Want

MAX_DEVICES = 64
_MAX_TEXT = 255
_MAX_GROUPS = 1000
_MAX_BYTES = 1 << 60
_MAX_KEY_SHOWN = 40
"""At most this many characters of an unknown key are repeated in the answer."""


def _printable(text: str) -> str:
    if not printable(text):
        raise PydanticCustomError("not_printable", "not printable")
    return text


def _in_utc(time: datetime) -> datetime:
    return time.astimezone(UTC)


_TEXT = f"text of 1 to {_MAX_TEXT} printable characters"
LeaseId = Annotated[str, Field(pattern="^[0-9a-f]{32}$", description="32 lower-case hexadecimal digits")]
Text = Annotated[
    str, Field(min_length=1, max_length=_MAX_TEXT, description=_TEXT), AfterValidator(_printable)
]
TextOrEmpty = Annotated[
    str,
    Field(max_length=_MAX_TEXT, description=f"text of up to {_MAX_TEXT} printable characters"),
    AfterValidator(_printable),
]
SubjectText = Annotated[
    str,
    Field(
        min_length=1,
        max_length=len("group:") + _MAX_TEXT,
        description=f'"everybody", "group:NAME" or "user:NAME"; a NAME is {_TEXT}',
    ),
    AfterValidator(_printable),
]
Groups = Annotated[
    tuple[Text, ...],
    Field(max_length=_MAX_GROUPS, description=f"a list of at most {_MAX_GROUPS} names, each {_TEXT}"),
]
Time = Annotated[AwareDatetime, AfterValidator(_in_utc), Field(description="a time with its zone, ISO 8601")]
Count = Annotated[int, Field(ge=0, description="a whole number, 0 or more")]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False, description="a number from 0 to 100")]


class Message(BaseModel):
    """The base class of all messages: strict types, no unknown keys, frozen."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


M = TypeVar("M", bound=Message)


# ---- what the hub sends


class WantMessage(Message):
    """What is asked of the devices, as `core.want.Want`."""

    device_count: int = Field(ge=1, le=MAX_DEVICES, description=f"a whole number from 1 to {MAX_DEVICES}")
    model: Text | None = Field(None, description=f"{_TEXT}, a part of the device's model name")
    mode: Mode = Field(Mode.WHOLE, description=f"one of {', '.join(Mode)}")
    pool: Text | None = Field(None, description=f"{_TEXT}, the name of a pool")
    mig_profile: Text | None = Field(None, description=f'{_TEXT}, a MIG profile as "1g.10gb"')
    memory_bytes: int | None = Field(
        None, ge=1, le=_MAX_BYTES, description="a whole number of bytes, 1 or more"
    )
    compute_percent: float | None = Field(
        None, gt=0, le=100, allow_inf_nan=False, description="a number above 0 and up to 100"
    )
    node: Text | None = Field(None, description=f"{_TEXT}, the machine that has the user's files")
    node_label: Text | None = Field(None, description=f"{_TEXT}, a label that the machine must have")

    @model_validator(mode="after")
    def _check_mode(self) -> WantMessage:
        """Raises an error if a value contradicts the mode."""
        if self.mode is Mode.TURNS and self.device_count != 1:
            raise PydanticCustomError("refused", "A turn is on one GPU: choose another tier.")
        if self.mode is Mode.SLICE and self.device_count != 1:
            raise PydanticCustomError("refused", "A slice is of one GPU: choose another tier.")
        shared = self.mode in (Mode.SLICE, Mode.TURNS)
        limited = self.mode is not Mode.SLICE and self.compute_percent is not None
        if limited or (not shared and self.memory_bytes is not None):
            raise PydanticCustomError("refused", "Only a slice has its own size: choose another tier.")
        return self


class RequestMessage(Message):
    """The body of `POST /leases`, as `core.model.GpuRequest`."""

    lease_id: LeaseId
    hub: Text
    user: Text
    server: TextOrEmpty
    tier: Text
    want: WantMessage = Field(description="an object that says what is asked of the devices")
    groups: Groups = ()
    image: TextOrEmpty = Field("", description=f"{_TEXT}, the id of the image that the lab runs")

    def request(self) -> GpuRequest:
        """The value that the broker works with."""
        return GpuRequest(**{**dict(self), "want": Want(**dict(self.want))})


# ---- what the broker answers


class RefusalMessage(Message):
    """The body of every answer of 400 and more."""

    reason: str = Field(description="one of the fixed reasons of `core.errors`, as a metric's label")
    message: str = Field(description="the sentence for the user, with what to do next")


class HeldWant(Message):
    """What a lease asked for.

    It isn't checked again: an old ledger may have values that are refused today.
    """

    device_count: Count
    model: str | None
    mode: Mode
    pool: str | None
    mig_profile: str | None
    memory_bytes: int | None
    compute_percent: float | None
    node: str | None = None
    node_label: str | None = None


class LeaseMessage(Message):
    """A lease, as `core.model.Lease`."""

    id: LeaseId
    hub: str
    user: str
    server: str
    tier: str
    state: LeaseState
    want: HeldWant
    created_at: Time
    since: Time
    device_uuids: tuple[str, ...]
    memory_bytes: Count
    compute_percent: Percent
    container_id: str | None
    notice: str
    reason: str
    mps: bool
    groups: tuple[str, ...]
    node: str
    device_fractions: tuple[float, ...]
    kept_asleep: str = ""

    def lease(self) -> Lease:
        """The value that the hub works with."""
        return Lease(**{**dict(self), "want": Want(**dict(self.want))})


class PatchMessage(Message):
    """What the lease changes in its container, as `core.model.ContainerPatch`."""

    env: dict[str, str]
    labels: dict[str, str]
    mounts: tuple[dict[str, JsonValue], ...]
    device_requests: tuple[dict[str, JsonValue], ...]
    runtime: str | None

    def patch(self) -> ContainerPatch:
        """The value that the hub works with."""
        return ContainerPatch(**dict(self))


class QueuedEvent(Message):
    """The request waits; sent when it joins the queue and whenever its place changes."""

    event: Literal["queued"] = "queued"
    position: int = Field(ge=1, description="its place among those that wait for the same devices; 1 is next")
    waiting: int = Field(ge=1, description="how many wait for the same devices, itself included")
    message: str = Field(description="the place in words, with the likely wait where that is known")
    earliest_at: Time | None = Field(
        default=None, description="the likely begin, at the earliest; null: not known"
    )
    latest_at: Time | None = Field(
        default=None, description="the likely begin, at the latest; null: not known"
    )
    sessions_before: int | None = Field(
        default=None, ge=0, description="sessions that end before; null: not known"
    )
    ends_at: Time | None = Field(
        default=None, description="when the wait ends if no device is free by then; null: not known"
    )


class LeaseEvent(Message):
    """Devices are reserved: what the lease is, and what it changes in the container."""

    event: Literal["lease"] = "lease"
    lease: LeaseMessage
    patch: PatchMessage


class RefusedEvent(RefusalMessage):
    """The stream ends here: the request is refused, or the lease has ended."""

    event: Literal["refused"] = "refused"


class HeartbeatEvent(Message):
    """Sent when there is no news; a long silence means that the broker hangs."""

    event: Literal["heartbeat"] = "heartbeat"


Event = QueuedEvent | LeaseEvent | RefusedEvent | HeartbeatEvent
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


# ---- documents


class ShareDocument(Message):
    """A lease's slice of a device."""

    lease_id: LeaseId
    user: str
    server: str
    hub: str
    memory_bytes: Count
    compute_percent: Percent
    since: Time


class TurnDocument(Message):
    """The turn of a lease whose pool is used in turns.

    `memory_bytes` is what it has on the GPU, or in host memory while it is asleep. `moves`: it is being
    paused, moved or woken. `position` and `wait_seconds`: its place among those that want a GPU, from 1, and
    about how long it waits; None if it wants none. `can_move` False: its memory can't leave the GPU.
    `held_up`: why its turn can't be foreseen: all its GPUs are drained or out of service ("no_gpu"),
    somebody's program that can't be paused or moved has them ("program"), or a step that can't be interrupted
    runs on them after the end of its turn ("kernel").
    """

    turn: Literal["awake", "paused", "asleep"]
    since: Time
    gpu_uuid: str | None
    memory_bytes: Count
    moves: bool
    position: int | None
    wait_seconds: float | None
    can_move: bool
    held_up: Literal["no_gpu", "program", "kernel"] | None = None


class EndDocument(Message):
    """Whether a server's container may be stopped now; if not, it is being prepared for it."""

    ready: bool


class ExitDocument(Message):
    """How a server's container ended that nobody stopped; null: not known. The broker removes it at once."""

    exit_code: int | None


class DeviceDocument(Message):
    """A device, its health and its holder. None: not available, or no holder.

    In turns the holder is who is awake there, and the seats are those of the whole pool.
    """

    uuid: str
    model: str
    index: int | None
    memory_bytes: Count
    compute_capability: str | None
    pool: str
    mode: Mode
    healthy: bool
    reason: str
    since: Time | None
    guarantee: Guarantee
    compute_guarantee: Guarantee
    unguarded_reason: str
    used_bytes: int | None
    utilization_percent: float | None
    simulated: bool
    lease_id: str | None
    user: str | None
    server: str | None
    free_slices: int | None
    total_slices: int | None
    free_memory_bytes: int | None
    shares: tuple[ShareDocument, ...]
    drained: bool = Field(False, description="whether an admin lets no new server start on it")
    free_seats: int | None = None
    total_seats: int | None = None
    node: str = Field("", description="its machine, where there are several")


class LeaseDocument(Message):
    """A lease that has not ended, as status and pages show it.

    `turn` is None in other modes, and before the broker has looked at its programs.
    `unknown_to_hub`: it holds its devices, but the hub has no such server; an admin can end it.
    """

    id: LeaseId
    user: str
    server: str
    hub: str
    tier: str
    state: LeaseState
    device_uuids: tuple[str, ...]
    memory_bytes: Count
    compute_percent: Percent
    mode: Mode
    since: Time
    notice: str
    turn: TurnDocument | None = None
    groups: tuple[str, ...] = Field((), description="the user's groups when the lease was asked for")
    used_bytes: int | None = Field(
        None, description="the memory that counts against memory_bytes; null: not known"
    )
    busy_percent: float | None = Field(
        None, description="how busy its GPUs are, in a slice with all who share them; null: not known"
    )
    ends_at: Time | None = Field(None, description="when the server ends; null: nothing ends it")
    ends_because: str = Field("", description="why it ends then")
    kept_asleep: str = Field(
        "", description='in turns: why it gets no turn for now, and until when; "": it gets its turns'
    )
    unknown_to_hub: bool = False


class QueueDocument(Message):
    """A waiting lease and its place."""

    id: LeaseId
    user: str
    server: str
    hub: str
    tier: str
    position: int
    since: Time
    earliest_at: Time | None = Field(default=None, description="the earliest likely begin; null: not known")
    latest_at: Time | None = Field(default=None, description="the latest likely begin; null: not known")
    groups: tuple[str, ...] = Field((), description="the user's groups when the lease was asked for")


class EndedDocument(Message):
    """A process that the guard ended, and why."""

    at: Time
    offence: str
    lease_id: str | None
    hub: str
    user: str
    server: str
    container_id: str
    device_uuid: str
    pid: int
    name: str
    used_bytes: int
    quota_bytes: int | None
    over_seconds: float
    sentence: str
    groups: tuple[str, ...] = Field((), description="the user's groups when the lease was asked for")


class DiskDocument(Message):
    """A disk that labs or broker fill. `sentence` says how much is free."""

    holds: str
    folder: str
    free_bytes: Count
    total_bytes: Count
    state: DiskState
    sentence: str


class MachineDocument(Message):
    """A machine with GPUs.

    `heard_at`: when its agent was heard last; null while it is connected, and if it never was. Of its `gpus`,
    `in_service` may be leased or are, and `drained` get nothing new.
    """

    name: str
    state: MachineState = Field(
        description='"not in use": it can be reached, but none of its GPUs can be leased; "refused": its '
        "agent connects, but the broker can't work with it"
    )
    reason: str = Field("", description="why it isn't ready")
    since: Time | None = Field(None, description="when this state began; null: not known")
    heard_at: Time | None = None
    release: str = Field("", description='the version of gpuspawner there; "": not known')
    own: bool = Field(False, description="whether it is the broker's own machine")
    gpus: Count = 0
    in_service: Count = 0
    drained: Count = 0
    leases: Count = 0
    labels: tuple[str, ...] = Field((), description="what tiers may ask for")
    notices: tuple[str, ...] = Field((), description="sentences for admins")


class StatusDocument(Message):
    """The broker's status: devices, leases and queue at one moment.

    `fault`: why the machine's GPUs can't be listed now; "" if they can. `disks` and `machines`: for those who
    see everything.
    """

    simulated: bool
    fault: str = ""
    devices: tuple[DeviceDocument, ...]
    leases: tuple[LeaseDocument, ...]
    queue: tuple[QueueDocument, ...]
    ended: tuple[EndedDocument, ...]
    disks: tuple[DiskDocument, ...] = ()
    machines: tuple[MachineDocument, ...] = ()


class DriverDocument(Message):
    """The driver's version and the newest CUDA that it runs; the hub compares images with them."""

    version: str | None
    cuda: str | None


class TierDocument(Message):
    """One tier and how much of it is free; None if the tier has no GPU, or no device matches. `drained`
    devices, onto which an admin lets nothing new, are not in `total`.

    `model` is what the tier asks for, a part of a name; `device_models` are the names of the devices that
    match, those with the least memory first, and `device_memory_bytes` is the memory of the first.
    `memory_bytes` and `compute_percent` are what a server gets of one device.
    """

    name: str
    title: str
    description: str
    device_count: Count
    model: str | None
    mode: Mode | None = None
    device_models: tuple[str, ...] = ()
    device_memory_bytes: int | None = None
    memory_bytes: int | None = None
    compute_percent: float | None = None
    guarantee: Guarantee | None = None
    compute_guarantee: Guarantee | None = None
    free: int | None = None
    total: int | None = None
    waiting: Count = 0
    drained: Count = 0


class TiersDocument(Message):
    """The answer to `GET /tiers`."""

    simulated: bool
    driver: DriverDocument | None
    tiers: tuple[TierDocument, ...]


# ---- conversion to JSON and back


def request_to_json(request: GpuRequest) -> str:
    """The body of `POST /leases`. Raises BadOption for a request that a broker would refuse."""
    try:
        return RequestMessage(**_with_want(request, WantMessage)).model_dump_json()
    except ValidationError as error:
        raise BadOption(sentence_of(error, RequestMessage)) from None


def request_from_json(body: bytes | str) -> GpuRequest:
    """The request in the body of `POST /leases`. Raises BadOption, naming the field and its valid values."""
    try:
        return RequestMessage.model_validate_json(body).request()
    except ValidationError as error:
        raise BadOption(sentence_of(error, RequestMessage)) from None


def lease_event(lease: Lease, patch: ContainerPatch) -> LeaseEvent:
    """The event that gives the lease to the hub."""
    held = LeaseMessage(**_with_want(lease, HeldWant))
    return LeaseEvent(lease=held, patch=PatchMessage(**_fields_of(patch)))


def refused_event(refusal: Refusal) -> RefusedEvent:
    """The event that ends the stream with a refusal."""
    return RefusedEvent(reason=refusal.reason, message=refusal.message)


def event_to_line(event: Event) -> str:
    """The event as one line of the stream, with its line end."""
    return event.model_dump_json() + "\n"


def event_from_line(line: bytes | str) -> Event | None:
    """The event in one line of the stream; None for a kind that this version doesn't know.

    Raises ValueError.
    """
    try:
        return _EVENT.validate_json(line)
    except ValidationError as error:
        if error.errors(include_url=False)[0]["type"] == "union_tag_invalid":
            return None
        raise


def document(message: Message) -> dict[str, Any]:
    """The message as plain JSON values."""
    return message.model_dump(mode="json")


def _with_want(item: GpuRequest | Lease, kind: type[WantMessage] | type[HeldWant]) -> dict[str, Any]:
    """The fields of `item`, with `want` as a message and everything else unchanged."""
    return {**_fields_of(item), "want": kind(**_fields_of(item.want))}


def _fields_of(item: GpuRequest | Lease | Want | ContainerPatch) -> dict[str, Any]:
    """The values as they are. `dataclasses.asdict` copies all that is in them, which takes longer than all
    else that is done for a message."""
    return {name: getattr(item, name) for name in item.__dataclass_fields__}


# ---- refusals


def sentence_of(error: ValidationError, kind: type[Message]) -> str:
    """A sentence for the sender about the first fault of a message of `kind`: the field and its valid values.

    The sentence repeats nothing that was sent, except the beginning of an unknown key.
    """
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = [str(part) for part in fault["loc"]]
    inside = ".".join(place[:-1]) or "The request"
    match fault["type"]:
        case "refused":
            return fault["msg"]
        case "json_invalid":
            return "The request is not JSON"
        case "missing":
            return f"{inside} lacks {place[-1]!r}"
        case "extra_forbidden":
            return f"{inside} has an unknown key {place[-1][:_MAX_KEY_SHOWN]!r}"
        case _ if not place:
            return "The request is not a JSON object"
        case _:
            return f"{_name(fault)} must be {_described(kind, fault)}"


def _name(fault: ErrorDetails) -> str:
    """The field's name, without the index in a list."""
    return ".".join(part for part in fault["loc"] if isinstance(part, str))


def _described(kind: type[Message], fault: ErrorDetails) -> str:
    """What the schema says of the field."""
    description = "something else"
    fields: Mapping[str, Any] = kind.model_fields
    for part in fault["loc"]:
        if part not in fields:
            break
        description = fields[str(part)].description or description
        inner = fields[str(part)].annotation
        fields = inner.model_fields if isinstance(inner, type) and issubclass(inner, Message) else {}
    return description
