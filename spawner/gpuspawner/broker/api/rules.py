"""The handlers of rules: quotas, GPU-hours, reports, lab sessions; and what the hub asks on the unix socket.

The API has these, behind the hub's login and on the socket (`public/rules.py`, `public/local.py`):
GET POST DELETE quotas            see, change and take back what users and groups may have
GET POST DELETE drains            devices on which nothing new is placed
POST            grants            more GPU-hours, or fewer, in the present period
GET             report            ?by=user|group|tier|day|node &start= &end= &timezone=
GET POST        sessions          lab sessions
DELETE          sessions/{name}
GET POST        sessions/calendar iCalendar, out and in
POST            leases/{id}/end   end a server that the hub doesn't know

On the socket alone, for the hub:
POST            /allowance         what one user may have and has
POST            /leases/{id}/extend
POST            /leases/{id}/kernels  whether a server's kernels compute, as the hub knows it
GET             /servers           since when each server's GPU is idle, and when it ends
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

from pydantic import ValidationError
from tornado.web import RequestHandler

from ...config.quotas import check_timezone, period_to_text
from ...config.sessions import session_to_json
from ...core.decision import Decision, DecisionKind, Drain, drain_of, drained_machine
from ...core.errors import BadOption, ConfigError, Fault, LeaseConflict, NotAllowed, Refusal
from ...core.model import Lease
from ...core.quota import EVERYBODY as FOR_EVERYBODY
from ...core.quota import UNLIMITED
from ...core.session import LabSession, Meeting
from ...protocol.messages import Message, RefusalMessage, document, sentence_of
from ...protocol.rules import (
    AllowanceDocument,
    Authored,
    BudgetDocument,
    CalendarAddress,
    CalendarImport,
    DecisionDocument,
    DrainChange,
    DrainDocument,
    DrainsDocument,
    EndUnknown,
    Extend,
    ExtendedDocument,
    Grant,
    KernelsMessage,
    MeetingDocument,
    QuotaChange,
    QuotaDocument,
    QuotaRemoval,
    QuotasDocument,
    ReportDocument,
    ReportLine,
    ServerDocument,
    ServersDocument,
    SessionCancel,
    SessionChange,
    SessionDocument,
    SessionsDocument,
    WhoAsks,
)
from ..decide.allow.budget import Spent, renewed_at
from ..decide.allow.report import By, Line, Report
from ..decide.when.calendar import Defaults
from ..decide.when.timetable import describe
from ..leases.audit import Answer, Asked
from ..leases.calendar_feeds import ALL
from ..leases.endings import Endings
from ..leases.rule_service import QuotaView, RuleService, Standing, report_window
from .access import ADMIN_SCOPE, EVERYBODY, RESERVE_SCOPE, Reach
from .paging import Part, cut
from .query import read_page, read_time
from .socket import Handler, Site

REQUEST_ID_HEADER = "Idempotency-Key"
"""The sender's id of a request that changes something: a repetition changes nothing."""
MAX_REQUEST_ID = 128

P = ParamSpec("P")
M = TypeVar("M", bound=Message)
H = TypeVar("H", bound="RuleHandler")


def rule_routes(site: Site, rules: RuleService, endings: Endings) -> list[tuple[Any, ...]]:
    """The API's, below its address."""
    wanted = {"site": site, "rules": rules, "endings": endings}
    return [
        (r"/quotas", QuotasHandler, wanted),
        (r"/grants", GrantsHandler, wanted),
        (r"/drains", DrainsHandler, wanted),
        (r"/report", ReportHandler, wanted),
        (r"/sessions", SessionsHandler, wanted),
        (r"/sessions/calendar", CalendarHandler, wanted),
        (r"/sessions/calendar/address", CalendarAddressHandler, wanted),
        (r"/sessions/([a-z0-9][a-z0-9._-]{0,62})", SessionHandler, wanted),
        (r"/leases/([0-9a-f]{32})/end", EndHandler, wanted),
    ]


def hub_routes(site: Site, rules: RuleService, endings: Endings) -> list[tuple[Any, ...]]:
    """The hub's on the socket, for `make_app`."""
    wanted = {"site": site, "rules": rules, "endings": endings}
    return [
        (r"/allowance", AllowanceHandler, wanted),
        (r"/leases/([0-9a-f]{32})/extend", ExtendHandler, wanted),
        (r"/leases/([0-9a-f]{32})/kernels", KernelsHandler, wanted),
        (r"/servers", ServersHandler, wanted),
    ]


def answering(
    method: Callable[Concatenate[H, P], Awaitable[None]],
) -> Callable[Concatenate[H, P], Awaitable[None]]:
    """Wraps the method: refusals and faults become answers."""

    async def run(handler: H, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            await method(handler, *args, **kwargs)
        except Refusal as refusal:
            handler.refuse(refusal)
        except Fault as fault:
            handler.refuse(handler.refusal_of(fault))

    return run


@dataclass(frozen=True, slots=True)
class Change:
    """A change that somebody asks for, and the groups for which it needs the scope; see `ledger.Write`.

    What concerns no group, such as one user's quota, needs the scope for everybody. `lease_id` is that of
    the server that it concerns, "" for none.
    """

    action: str
    subject: str
    groups: tuple[str, ...]
    body: Authored
    lease_id: str = ""


def read_request_id(handler: RequestHandler) -> str | None:
    """The sender's id of the request: a repetition changes nothing. Raises BadOption."""
    sent = handler.request.headers.get(REQUEST_ID_HEADER)
    if sent is not None and not 0 < len(sent) <= MAX_REQUEST_ID:
        raise BadOption(f"{REQUEST_ID_HEADER} must have 1 to {MAX_REQUEST_ID} characters.")
    return sent


class RuleHandler(Handler):
    """A handler with access to the rules.

    `needs` is the scope that its changes need where the hub says who asks.
    """

    rules: RuleService
    endings: Endings
    needs: ClassVar[str] = ADMIN_SCOPE

    def initialize(self, site: Site, **more: Any) -> None:
        super().initialize(site)
        self.rules, self.endings = more["rules"], more["endings"]

    @property
    def via(self) -> str:
        """The way by which the request came, for the audit log."""
        return "socket"

    def body(self) -> bytes:
        """The request's body, JSON if it is well-formed."""
        return self.request.body or b"{}"

    def read(self, kind: type[M]) -> M:
        """The request's body. Raises BadOption, which names the field and a valid value."""
        try:
            return kind.model_validate_json(self.body())
        except ValidationError as error:
            raise BadOption(sentence_of(error, kind)) from None

    def send(self, message: Message) -> None:
        """Answers with it."""
        self.answer(document(message))

    def reach(self) -> Reach:
        """Whom the sender may read about."""
        return EVERYBODY

    def allow(self, change: Change) -> None:
        """Raises NotAllowed if the sender may not make this change."""

    async def make(self, change: Change, do: Callable[[], Awaitable[Message | None]]) -> None:
        """Makes the change with `do`, which gives the answer's message, through the audit log."""
        asked = self._asked(change)
        if await self.repeated(asked):
            return
        try:
            self.allow(change)
        except NotAllowed as refused:
            await self.rules.audit.refuse(asked, refused.message)
            raise

        async def carry_out() -> Answer:
            message = await do()
            return Answer() if message is None else Answer(200, message.model_dump_json())

        self._give(await self.rules.audit.write(asked, carry_out))

    async def repeated(self, asked: Asked) -> bool:
        """Gives the answer of the same request, if it was done before. Raises LedgerFault."""
        answer = await self.rules.audit.repeated(asked)
        if answer is not None:
            self._give(answer)
        return answer is not None

    def _asked(self, change: Change) -> Asked:
        about = {"lease": change.lease_id} if change.lease_id else {}
        return Asked(
            author=change.body.author,
            via=self.via,
            action=change.action,
            subject=change.subject,
            groups=change.groups,
            document={**about, **change.body.model_dump(mode="json", exclude={"author", "reason"})},
            reason=getattr(change.body, "reason", ""),
            request_id=read_request_id(self),
        )

    def _give(self, answer: Answer) -> None:
        self.set_status(answer.status)
        if answer.body is not None:
            self.set_header("Content-Type", "application/json")
            self.write(answer.body)


class QuotasHandler(RuleHandler):
    """GET POST DELETE /quotas"""

    @answering
    async def get(self) -> None:
        """The quotas, with what was changed at run time, by whom and why."""
        reach, page = self.reach(), read_page(self)
        quotas = [
            view
            for view in self.rules.quotas()
            if view.subject == FOR_EVERYBODY or _covers(reach, str(view.subject))
        ]
        found = cut(
            (
                Part("quotas", quotas, lambda view: str(view.subject)),
                Part("history", self._history(reach), lambda each: each[0]),
            ),
            page,
        )
        problems = self.rules.rulebook.rules.problems if reach.everybody and not page.cursor else ()
        self.send(
            QuotasDocument(
                quotas=tuple(map(quota_document, found.lists["quotas"])),
                problems=problems,
                history=tuple(decision_document(each) for _, each in found.lists["history"]),
                next=found.next,
            )
        )

    def _history(self, reach: Reach) -> list[tuple[str, Decision]]:
        """What was decided, each with a key: decisions are only added, so that their number stays."""
        return [
            (f"{kind.value} {number:012}", each)
            for kind in (DecisionKind.QUOTA, DecisionKind.GRANT)
            for number, each in enumerate(self.rules.rulebook.history(kind))
            if _covers(reach, each.subject)
        ]

    @answering
    async def post(self) -> None:
        """204 when the change is in force."""
        change = self.read(QuotaChange)
        asked = Change("change quota", change.subject, groups_in(change.subject), change)

        async def change_it() -> None:
            await self.rules.change_quota(
                change.subject, change.values, change.author, change.reason, end_servers=change.end_servers
            )

        await self.make(asked, change_it)

    @answering
    async def delete(self) -> None:
        """204 when the run-time changes are removed."""
        removal = self.read(QuotaRemoval)
        asked = Change("reset quota", removal.subject, groups_in(removal.subject), removal)
        await self.make(
            asked, lambda: self.rules.remove_quota(removal.subject, removal.author, removal.reason)
        )


class GrantsHandler(RuleHandler):
    """POST /grants"""

    @answering
    async def post(self) -> None:
        """204 once it is granted."""
        grant = self.read(Grant)
        asked = Change("grant GPU-hours", grant.subject, groups_in(grant.subject), grant)
        await self.make(
            asked, lambda: self.rules.grant(grant.subject, grant.gpu_hours, grant.author, grant.reason)
        )


class DrainsHandler(RuleHandler):
    """GET POST DELETE /drains"""

    @answering
    async def get(self) -> None:
        """What is drained; that is nobody's in particular, so everybody who reads anything sees it."""
        drained = sorted(self.rules.rulebook.rules.drained.items())
        found = cut([Part("drains", drained, lambda item: item[0])], read_page(self))
        self.send(
            DrainsDocument(
                drains=tuple(_drain_document(subject, each) for subject, each in found.lists["drains"]),
                warning=self.rules.drain_warning(),
                next=found.next,
            )
        )

    @answering
    async def post(self) -> None:
        """204 once nothing new is placed there."""
        change = self.read(DrainChange)

        async def drain() -> None:
            if change.machine:
                await self.rules.drain_machine(change.machine, change.author, change.reason)
            else:
                await self.rules.drain(change.uuid, change.author, change.reason)

        await self.make(_drain_asked("drain", change), drain)

    @answering
    async def delete(self) -> None:
        """204 once servers are placed there again."""
        change = self.read(DrainChange)

        async def undrain() -> None:
            if change.machine:
                await self.rules.undrain_machine(change.machine, change.author, change.reason)
            else:
                await self.rules.undrain(change.uuid, change.author, change.reason)

        await self.make(_drain_asked("undrain", change), undrain)


def _drain_document(subject: str, drain: Drain) -> DrainDocument:
    machine = drained_machine(subject)
    return DrainDocument(
        uuid="" if machine else subject,
        machine=machine,
        since=drain.since,
        author=drain.author,
        reason=drain.reason,
    )


def _drain_asked(what: str, change: DrainChange) -> Change:
    """As the audit log has it."""
    if change.machine:
        return Change(f"{what} machine", drain_of(change.machine), (), change)
    return Change(f"{what} device", f"device:{change.uuid}", (), change)


class AllowanceHandler(RuleHandler):
    """POST /allowance"""

    @answering
    async def post(self) -> None:
        """What the user may have and has; the hub's form shows it."""
        who = self.read(WhoAsks)
        await self.rules.rulebook.note_properties(who.properties)
        self.send(allowance_document(await self.rules.standing(who.hub, who.user, who.groups, who.server)))


class ReportHandler(RuleHandler):
    """GET /report"""

    @answering
    async def get(self) -> None:
        """The report."""
        page = read_page(self)
        by = self.get_query_argument("by", By.USER.value)
        if by not in list(By):
            raise BadOption(f"A report is grouped by one of {', '.join(By)}.")
        timezone = self.get_query_argument("timezone", self.rules.rulebook.known.timezone)
        try:
            check_timezone(timezone, "timezone")
        except ConfigError as error:
            raise BadOption(f"{error}.") from None
        window = report_window(read_time(self, "start"), read_time(self, "end"), self.site.service.now())
        reach = self.reach()
        groups = None if reach.everybody else reach.groups
        report = report_document(await self.rules.report(By(by), window, timezone, groups))
        found = cut([Part("lines", report.lines, lambda line: line.name)], page)
        self.send(report.model_copy(update={"lines": found.lists["lines"], "next": found.next}))


class SessionsHandler(RuleHandler):
    """GET POST /sessions"""

    needs = RESERVE_SCOPE

    @answering
    async def get(self) -> None:
        """The lab sessions, and when they meet next."""
        rulebook, reach, page = self.rules.rulebook, self.reach(), read_page(self)
        seen = [each for each in self.rules.sessions() if reach.covers((each[0].group,))]
        found = cut([Part("sessions", seen, lambda each: each[0].name)], page)
        problems = rulebook.rules.problems if reach.everybody and not page.cursor else ()
        self.send(
            SessionsDocument(
                sessions=tuple(session_document(*each) for each in found.lists["sessions"]),
                problems=problems,
                timezone=rulebook.known.timezone,
                next=found.next,
            )
        )

    @answering
    async def post(self) -> None:
        """The session as it was stored."""
        change = self.read(SessionChange)
        name, group = (str(change.session.get(key, "")) for key in ("name", "group"))
        groups = {group} | self.rules.session_groups([name])
        asked = Change("save lab session", f"session:{name}", tuple(sorted(groups)), change)

        async def save() -> SessionDocument:
            session = await self.rules.save_session(change.session, change.author, change.reason)
            following = {each.name: meetings for each, meetings in self.rules.sessions()}
            return session_document(session, following.get(session.name, []))

        await self.make(asked, save)


class SessionHandler(RuleHandler):
    """DELETE /sessions/{name}"""

    needs = RESERVE_SCOPE

    @answering
    async def delete(self, name: str) -> None:
        """204 once it is cancelled."""
        cancel = self.read(SessionCancel)
        groups = tuple(sorted(self.rules.session_groups([name])))
        asked = Change("cancel lab session", f"session:{name}", groups, cancel)
        await self.make(asked, lambda: self.rules.cancel_session(name, cancel.author, cancel.reason))


class CalendarHandler(RuleHandler):
    """GET POST /sessions/calendar"""

    needs = RESERVE_SCOPE

    @answering
    async def get(self) -> None:
        """All sessions as an iCalendar."""
        self.set_header("Content-Type", "text/calendar; charset=utf-8")
        self.write(self.rules.calendar(lambda session: self.reach().covers((session.group,))))

    @answering
    async def post(self) -> None:
        """The sessions that were imported."""
        body = self.read(CalendarImport)
        defaults = Defaults(body.group, body.tier, body.seats)
        found = self.rules.read_calendar(body.calendar, defaults)
        names = {session.name for session in found}
        groups = {session.group for session in found} | self.rules.session_groups(names)
        asked = Change("import calendar", "sessions", tuple(sorted(groups)), body)

        async def take_over() -> SessionsDocument:
            await self.rules.import_calendar(body.calendar, defaults, body.author, body.reason)
            listed = tuple(session_document(*each) for each in self.rules.sessions() if each[0].name in names)
            return SessionsDocument(sessions=listed, problems=(), timezone=self.rules.rulebook.known.timezone)

        await self.make(asked, take_over)


class CalendarAddressHandler(RuleHandler):
    """GET /sessions/calendar/address"""

    needs = RESERVE_SCOPE

    @answering
    async def get(self) -> None:
        """Where a calendar program reads the sessions of `group`, or all of them."""
        group = self.get_query_argument("group", ALL)
        reach = self.reach()
        if not (reach.covers((group,)) if group else reach.everybody):
            raise NotAllowed("Your account may not see this: name a group whose sessions you may see.")
        self.send(CalendarAddress(address=self.rules.feeds.address(group)))


class ExtendHandler(RuleHandler):
    """POST /leases/{id}/extend"""

    needs = RESERVE_SCOPE

    @answering
    async def post(self, lease_id: str) -> None:
        """The seconds by which the session was extended."""
        body = self.read(Extend)
        lease = self.rules.lease(lease_id)
        asked = Change("extend", f"user:{lease.user}", lease.groups, body)

        async def extend() -> ExtendedDocument:
            return ExtendedDocument(seconds=await self.rules.extend(lease_id, body.seconds, body.author))

        await self.make(asked, extend)


class EndHandler(RuleHandler):
    """POST /leases/{id}/end"""

    @answering
    async def post(self, lease_id: str) -> None:
        """204: the container is being removed, and its GPU is free when Docker says that it is gone."""
        body = self.read(EndUnknown)
        if await self.repeated(self._asked(Change("end", "", (), body, lease_id))):
            return
        lease = self.rules.lease(lease_id)
        if lease_id not in self.site.unknown():
            raise LeaseConflict("The hub knows this server: stop it on the hub's admin page.")

        async def end() -> None:
            await self.site.service.release(lease_id, f"ended by {body.author}: the hub doesn't know it")

        await self.make(Change("end", f"user:{lease.user}", (), body, lease_id), end)


class KernelsHandler(RuleHandler):
    """POST /leases/{id}/kernels"""

    @answering
    async def post(self, lease_id: str) -> None:
        """204."""
        body = self.read(KernelsMessage)
        self.endings.note_kernels(lease_id, body.busy, body.active_at)
        self.set_status(204)


class ServersHandler(RuleHandler):
    """GET /servers"""

    async def get(self) -> None:
        """Since when each server with a lease is idle, and when it ends."""
        listed = tuple(self._document(lease) for lease in self.site.service.leases())
        self.send(ServersDocument(servers=listed))

    def _document(self, lease: Lease) -> ServerDocument:
        deadline = self.endings.deadline_of(lease.id)
        return ServerDocument(
            hub=lease.hub,
            user=lease.user,
            server=lease.server,
            state=lease.state,
            idle_since=self.endings.idle_since(lease),
            ends_at=None if deadline is None else deadline.at,
            ends_because="" if deadline is None else deadline.cause.value,
        )


def quota_document(view: QuotaView) -> QuotaDocument:
    """One subject's limits."""
    return QuotaDocument(
        subject=str(view.subject),
        limits=dict(view.limits),
        settings=dict(view.settings),
        changed=dict(view.changed),
    )


def groups_in(subject: str) -> tuple[str, ...]:
    """The group of "group:NAME"; none for other subjects."""
    kind, _, name = subject.partition(":")
    return (name,) if kind == "group" else ()


def _covers(reach: Reach, subject: str) -> bool:
    return reach.covers_each(groups_in(subject))


def allowance_document(standing: Standing) -> AllowanceDocument:
    """What a user may have and has, as plain values."""
    allowed, asks = standing.allowed, [each.ask for each in standing.holdings]
    return AllowanceDocument(
        leases=_whole(allowed.leases),
        devices=_whole(allowed.devices),
        slices=_whole(allowed.slices),
        session_seconds=_finite(allowed.session_seconds),
        extend_seconds=_finite(allowed.extend_seconds),
        priority=allowed.priority,
        held_leases=len(asks),
        held_devices=sum(ask.devices for ask in asks),
        held_slices=sum(ask.slices for ask in asks),
        budgets=tuple(budget_document(each) for each in standing.spent),
        refused={
            tier: RefusalMessage(reason=refusals[0].reason, message=refusals[0].message)
            for tier, refusals in standing.refused.items()
        },
    )


def budget_document(spent: Spent) -> BudgetDocument:
    """One budget."""
    period = spent.budget.period
    return BudgetDocument(
        limit_gpu_seconds=spent.limit_gpu_seconds,
        used_gpu_seconds=spent.used_gpu_seconds,
        left_gpu_seconds=spent.left_gpu_seconds,
        period=period_to_text(period),
        timezone=period.timezone,
        renewed_at=renewed_at(spent),
    )


def report_document(report: Report) -> ReportDocument:
    """A report."""
    return ReportDocument(
        by=report.by.value,
        start=report.window.start,
        end=report.window.end,
        timezone=report.timezone,
        lines=tuple(map(_line, report.lines)),
        total=_line(report.total),
    )


def session_document(session: LabSession, following: list[Meeting]) -> SessionDocument:
    """A lab session and when it meets next."""
    return SessionDocument(
        session=session_to_json(session),
        words=describe(session),
        next=tuple(MeetingDocument(start=each.start, end=each.end) for each in following),
    )


def decision_document(decision: Decision) -> DecisionDocument:
    """A decision of the ledger."""
    return DecisionDocument(
        at=decision.at,
        kind=decision.kind.value,
        subject=decision.subject,
        document=None if decision.document is None else json.loads(json.dumps(decision.document)),
        author=decision.author,
        reason=decision.reason,
    )


def _line(line: Line) -> ReportLine:
    return ReportLine(
        name=line.name,
        gpu_seconds=line.gpu_seconds,
        lease_count=line.lease_count,
        user_count=line.user_count,
    )


def _whole(value: float) -> int | None:
    return None if value == UNLIMITED else int(value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
