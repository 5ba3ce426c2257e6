"""The broker's process: its settings, start, end and loops."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

from tornado.httpserver import HTTPServer
from traitlets import Bool, Float, TraitError, Unicode, default
from traitlets.config import Application
from traitlets.config.loader import Config, PyFileConfigLoader

from ..config.idle import IdleRules
from ..config.open_files import raise_limit
from ..config.site import GpuSite
from ..core.errors import ConfigError, EngineFault, Fault, GpuSpawnerError
from ..core.model import ContainerPatch, Lease, Mode, Tier
from ..core.quota import Quota
from ..core.states import AWAKE
from ..core.units import utc_now
from ..node.api import Node, NodeFacts
from ..node.local import open_node
from .api.answers import About, View
from .api.classes import Classes, ClassParts
from .api.offer import offer_routes
from .api.public.actions import Actions
from .api.public.classes import ClassTools, class_routes
from .api.public.hub_servers import HubServers
from .api.public.rules import MoreRoutes, joined, public_rules
from .api.public.turns import public_turns
from .api.rules import rule_routes
from .api.socket import MAX_BODY_BYTES, Site, bind_socket, make_app, unbind_socket
from .api.turns import TurnService, turn_routes
from .decide.book import QueueRules
from .decide.line.fairshare import FairShare
from .decide.place.pooling import Pooling
from .decide.turns import Turn
from .decide.when.gpu_use import GpuUse, gpu_use
from .enforce.closures import ClosureParts, Closures
from .enforce.enforcement import Enforcement, Tools
from .enforce.late import LateDevices, LateParts
from .enforce.reloads import ReloadParts, ReloadWatch
from .enforce.sharing import Sharing
from .enforce.way_in import WayIn
from .identity import broker_id
from .keeper import EXIT_SETTINGS
from .leases.allocator import Allocator
from .leases.announcements import Announcements
from .leases.containers import DockerEngine
from .leases.endings import EndingParts, Endings
from .leases.folders import DiskFolders
from .leases.gate import QuotaGate
from .leases.hub_api import HubApi
from .leases.hub_people import HubPeople
from .leases.leasing import NOT_READY, LeaseService, Parts
from .leases.offers import Offers
from .leases.prestart import Prestart
from .leases.queue_rules import queue_rules
from .leases.rule_service import RuleService
from .leases.rulebook import Rulebook
from .leases.unknown import UnknownServers
from .ledger import Ledger
from .lock import BrokerLock
from .observe.disks import DiskWatch
from .observe.failures import LoopFailures
from .observe.journal import Journal
from .observe.metrics import Metrics
from .observe.pruning import Pruning
from .observe.sampler import Sampler
from .observe.use import Use, use_in_turns, use_of
from .pages import serve_pages
from .pages.admin.base import AdminTools
from .pages.admin.checkup import Checkup, ask_doctor
from .pages.admin.handlers import admin_pages
from .pages.admin.map import Readings
from .pages.classes.base import Teaching
from .pages.classes.handlers import class_pages
from .pages.look import hub_of
from .pages.own.desk import BrokerDesk
from .pages.own.lab import LabReadings, LabSources
from .pages.serving import MakeDesk, page_url
from .pages.unknown.handlers import unknown_pages

RETRY_SECONDS = 0.5
"""Pause after a failed round."""
NOT_SET_UP = (
    "GPUs can't be given out right now: this machine isn't set up for it. Choose CPU. "
    "Admin: run 'gpuspawner doctor', and see the log of the broker."
)

GPUS_SILENT = (
    "GPUs can't be given out right now: the GPUs of this machine don't answer. Choose CPU, or try again in a "
    "few minutes. Admin: see the GPU page, and run 'gpuspawner doctor'."
)


class GpuBroker(Application):
    """Leases GPUs to the servers of JupyterHub; see the settings of GpuSite for what hub and broker share."""

    name = "gpuspawner-broker"
    description = "Leases GPUs to the servers of JupyterHub."
    classes = [GpuSite]  # noqa: RUF012 - traitlets reads it as a plain class attribute
    aliases = {"config": "GpuBroker.config_file"}  # noqa: RUF012
    flags = {  # noqa: RUF012
        "take-over": (
            {"GpuBroker": {"take_over": True}},
            "end the broker that runs on this state folder, and continue with its leases",
        )
    }

    config_file = Unicode(
        "",
        help="""
        The settings file: the hub's `jupyterhub_config.py`.

        Default: none; all settings have their defaults.
        Example: `python -m gpuspawner.broker --config /srv/jupyterhub/jupyterhub_config.py`
        """,
    ).tag(config=True)

    take_over = Bool(
        False,
        help="""
        End the broker that runs on this state folder (SIGTERM) and continue with its leases.

        Default: off, and a second broker refuses to start. For the hub-managed broker it is on, so that
        it starts even if an earlier hub was killed and its broker still runs.
        Example: `python -m gpuspawner.broker --take-over`
        """,
    ).tag(config=True)

    reconcile_seconds = Float(
        2.0,
        min=0.1,
        help="""
        Seconds between two comparisons of the ledger with Docker's containers.

        Default: 2, so that missed events are handled, and orphaned containers removed, within 5 s. Each
        comparison needs one listing of the leased containers from Docker.
        Example: `c.GpuBroker.reconcile_seconds = 1`
        """,
    ).tag(config=True)

    database_url = Unicode(
        help="""
        SQLAlchemy URL of the ledger's database. Don't use the hub's own database. Several brokers may share
        one PostgreSQL database (tested with 15; `pip install 'gpuspawner[postgresql]'`): `broker.id` in its
        state folder identifies each broker, and it changes only its own leases.

        Default: SQLite in `ledger.sqlite` in the state folder.
        Example: `c.GpuBroker.database_url = "postgresql+psycopg://gpuspawner@db/gpuspawner"`
        """,
    ).tag(config=True)

    history_days = Float(
        400.0,
        min=1.0,
        help="""
        Days for which the ledger keeps closed leases and ended processes.

        Default: 400, enough for a yearly report. Older ones are deleted hourly in small steps; usage reports
        no longer include them.
        Example: `c.GpuBroker.history_days = 3650`
        """,
    ).tag(config=True)

    @default("database_url")
    def _database_url_default(self) -> str:
        return f"sqlite:///{self.state_dir / 'ledger.sqlite'}"

    @default("log_level")
    def _log_level_default(self) -> int:
        return logging.INFO

    @default("log_format")
    def _log_format_default(self) -> str:
        return "[%(levelname)1.1s %(asctime)s broker] %(message)s"

    site: GpuSite
    tiers: tuple[Tier, ...]
    quotas: tuple[Quota, ...]
    idle: IdleRules
    ledger: Ledger
    hub_api: HubApi | None
    rulebook: Rulebook
    announcements: Announcements
    gate: QuotaGate
    rules: RuleService
    endings: Endings
    sampler: Sampler
    allocator: Allocator
    service: LeaseService
    enforcement: Enforcement
    journal: Journal
    sharing: Sharing
    node: Node
    facts: NodeFacts
    way_in: WayIn
    closures: Closures
    disks: DiskWatch
    unknown: UnknownServers | None = None

    @property
    def state_dir(self) -> Path:
        """The state folder, absolute; it is also this broker's name in the labels of its containers."""
        return Path(self.site.state_dir).absolute()

    # ---- settings

    def initialize(self, argv: list[str] | None = None) -> None:
        """Reads command line and config file. Raises ConfigError for invalid settings."""
        try:
            self.parse_command_line(argv)
            command_line = Config(self.cli_config)
            if self.config_file:
                self._load_file(Path(self.config_file).absolute())
                self.update_config(command_line)
            self.site = GpuSite(parent=self)
            self.tiers = self.site.parsed_tiers()
            self.quotas = self.site.parsed_quotas()
            self.idle = self.site.parsed_idle()
        except TraitError as error:
            raise ConfigError(f"A setting can't be used: {error}") from error

    def _load_file(self, path: Path) -> None:
        if not path.is_file():
            raise ConfigError(
                f"The config file {path} doesn't exist: give the hub's config file with --config"
            )
        try:
            config = PyFileConfigLoader(path.name, path=str(path.parent)).load_config()
        except Exception as error:  # it is the site's code, and may raise anything
            raise ConfigError(f"The config file {path} failed: {type(error).__name__}: {error}") from error
        self.update_config(config)

    # ---- the order of start and end

    async def run(self) -> None:
        """Runs until SIGTERM or SIGINT. Raises ConfigError or Fault if it can't start."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        _make_state_dir(self.state_dir)
        lock = BrokerLock(self.state_dir)
        await asyncio.to_thread(lock.acquire, take_over=self.take_over)
        try:
            await self._run_locked(stop)
        finally:
            lock.release()

    async def _run_locked(self, stop: asyncio.Event) -> None:
        owner = await asyncio.to_thread(broker_id, self.state_dir)
        ledger = Ledger(self.database_url, owner=owner, log=self.log)
        await ledger.open()
        try:
            await self._run_with(ledger, stop)
        finally:
            await ledger.close()

    async def _run_with(self, ledger: Ledger, stop: asyncio.Event) -> None:
        self.node = open_node(self.site, self.log)
        try:
            self.facts = await self.node.start()
            await self._run_node(ledger, stop)
        finally:
            await self.node.close()

    async def _run_node(self, ledger: Ledger, stop: asyncio.Event) -> None:
        self.ledger = ledger
        self.sharing = Sharing(self.site, self.tiers)
        pooling = self.sharing.find(self.facts)
        for warning in pooling.warnings:
            self.log.warning("%s", warning)
        self.rulebook = Rulebook(ledger, self.site.quotas, self.site.known(), log=self.log)
        await self.rulebook.load()
        self.announcements = Announcements(self.rulebook, self.log)
        self.gate = QuotaGate(self.rulebook, ledger)
        self.allocator = Allocator(ledger, gate=self.gate, log=self.log, rules=self._queue_rules())
        self.gate.floor = self.allocator
        self.rules = RuleService(self.rulebook, self.gate, self.allocator, ledger)
        await self.allocator.load(pooling.devices, pooling.terms, place=False)
        await self.allocator.set_drained(self.rulebook.rules.drained)
        self.service = await self._make_service(ledger)
        self.journal = Journal(ledger, self.log)
        self.enforcement = self._make_enforcement(pooling)
        self.closures = self._make_closures()
        self.disks = DiskWatch(self.engine.facts, self.node.disks, self.measures, self.log)
        self.endings = self._make_endings()
        self.sampler = Sampler(self._uses, self.log)
        await self.journal.load()
        await self.enforcement.start()
        self.hub_api = _hub_api(os.environ)
        servers: list[HTTPServer] = []
        loops: list[asyncio.Task[None]] = []
        try:
            await self._look()
            servers.append(self._serve_socket())
            servers.extend(
                serve_pages(
                    self._view(), self.config, make_desk=self._make_desk(ledger), more=self._public_routes()
                )
            )
            self.service.reachable()
            self.engine.watch_events(self.service.on_event)
            loops.extend(asyncio.create_task(loop, name=name) for name, loop in self._rounds(ledger).items())
            gc.freeze()  # what stays (modules, rules) is not looked through again by each collection
            self._say_ready(len(pooling.devices))
            await stop.wait()
            self.log.info("The broker ends; leases stay in the ledger and running servers keep running")
        finally:
            for task in loops:
                task.cancel()
            await self.service.close()  # first: from now on, a broken hold frees nothing
            await self._close(servers)

    def _rounds(self, ledger: Ledger) -> dict[str, Coroutine[Any, Any, None]]:
        """What runs beside the answers until the broker ends, by name."""
        rounds = {
            "reconcile": self._tick(),
            "waits": self.allocator.waits.run(),
            "late devices": self._make_late().run(),
            "endings": self.endings.run(),
            "sampler": self.sampler.run(),
            "disks": self.disks.run(),
            "announcements": self.announcements.run(self.allocator.leases, self.folders),
            "pruning": Pruning(ledger, self.history_days, self.log).run(),
            "lab readings": self._make_lab_readings().run(),
        }
        if not self.facts.simulated:
            rounds |= {"closures": self.closures.run(), "reloads": self._make_reloads().run()}
        if (hub := self.hub_api) is not None:
            self.unknown = UnknownServers(hub, self.allocator.leases, hub_of(self.config), self.log)
            at_once = self.site.prestart_at_once
            prestart = Prestart(self.rulebook, hub, self._running_users, at_once, self.log)
            rounds |= {"unknown servers": self.unknown.run(), "prestart": prestart.run()}
        return rounds

    def _queue_rules(self) -> QueueRules:
        """Who is next, as the settings and quotas say."""
        half_life_seconds = self.site.fair_share_half_life_days * 86400
        fair = FairShare(half_life_seconds) if self.site.fair_share else None
        return queue_rules(self.gate, fair, self.site.queue_patience)

    def _running_users(self) -> set[str]:
        """Users whose default server holds a GPU and runs."""
        return {each.user for each in self.allocator.leases() if not each.server and each.state in AWAKE}

    def _make_endings(self) -> Endings:
        parts = EndingParts(
            rulebook=self.rulebook,
            gate=self.gate,
            allocator=self.allocator,
            service=self.service,
            gpu_use=self._gpu_use,
            idle=self.idle,
            timezone=self.site.timezone,
            sleep=self._sleep,
            can_sleep=lambda lease: lease.mode is Mode.TURNS,
        )
        return Endings(parts, self.log)

    async def _sleep(self, lease: Lease, reason: str) -> bool:
        """In turns, what it has on a GPU moves to main memory; it wakes when its user runs a cell."""
        return self.enforcement.turns.rest(lease.id)

    def _gpu_use(self, lease: Lease) -> GpuUse:
        devices = {device.uuid: device for device in self.enforcement.node_facts().devices}
        return gpu_use(lease, devices, self.enforcement.usage(), utc_now())

    def _uses(self) -> dict[str, Use]:
        """What each lease that holds devices uses, as the node read it last."""
        usage = self.enforcement.usage()
        turns = self.enforcement.turns.views()
        held = [lease for lease in self.allocator.leases() if lease.device_uuids]
        uses = {lease.id: use_of(lease, usage) for lease in held if lease.mode is not Mode.TURNS}
        for lease_id, view in turns.items():
            awake = view.gpu_uuid if view.turn is Turn.AWAKE else None
            uses[lease_id] = use_in_turns(view.memory_bytes, awake, usage)
        return uses

    def _make_desk(self, ledger: Ledger) -> MakeDesk:
        def make(api_url: str) -> BrokerDesk:
            turn = self._turn_service().act
            actions = Actions(self.rules, HubServers(api_url), self.allocator.lease, self.tiers, turn)
            return BrokerDesk(self.rules, ledger, self.sampler, actions)

        return make

    def _make_lab_readings(self) -> LabReadings:
        sources = LabSources(
            leases=self.allocator.leases,
            uses=lambda: self.sampler.latest,
            deadline_of=self.endings.deadline_of,
            turns=self.enforcement.turns.views,
            page_url=page_url(os.environ),
            simulated=self.facts.simulated,
        )
        failures = LoopFailures("lab readings", self.measures, self.log)
        return LabReadings(sources, self.folders.write_use, failures)

    def _make_late(self) -> LateDevices:
        parts = LateParts(
            sharing=self.sharing,
            service=self.service,
            enforcement=self.enforcement,
            probe=self.way_in.probe,
            metrics=self.measures,
            log=self.log,
        )
        late = LateDevices(parts)
        self.enforcement.on_facts = late.offer
        return late

    def _make_reloads(self) -> ReloadWatch:
        parts = ReloadParts(
            engine=self.engine,
            way=lambda: self.way_in.way,
            stamp=self.node.reload_stamp,
            leases=self.allocator.leases,
            tell=self.service.tell,
            metrics=self.measures,
            log=self.log,
        )
        return ReloadWatch(parts)

    def _make_closures(self) -> Closures:
        parts = ClosureParts(
            node=self.node,
            engine=self.engine,
            way_in=self.way_in,
            devices=lambda: self.sharing.pooling.terms,
            leases=self.allocator.leases,
            close=self.enforcement.close_to_new,
            metrics=self.measures,
            log=self.log,
        )
        return Closures(parts)

    def _make_enforcement(self, pooling: Pooling) -> Enforcement:
        tools = Tools(
            node=self.node,
            facts=self.facts,
            pooling=pooling,
            metrics=self.measures,
            journal=self.journal,
            log=self.log,
            rank=self._turn_rank,
        )
        enforcement = Enforcement(tools, self.service)
        self.allocator.on_lease = self._on_lease
        return enforcement

    def _on_lease(self, lease: Lease) -> None:
        """The allocator has committed this lease."""
        self.measures.lease_times.on_lease(lease)
        self.enforcement.on_lease(lease)

    def _turn_service(self) -> TurnService:
        return TurnService(self.allocator, self.enforcement.turns)

    def _turn_rank(self, lease: Lease) -> tuple[float, ...]:
        """Whose turn comes first: by the quota's priority, as in the queue."""
        return (-float(self.gate.claim_of(lease).priority),)

    async def _make_service(self, ledger: Ledger) -> LeaseService:
        self.measures = Metrics(tier.name for tier in self.tiers if tier.needs_gpu)
        self.measures.lease_times.adopt(self.allocator.leases())
        self.rules.audit.on_end = self.measures.audited
        ledger.on_fault = self.measures.ledger_failed
        self.engine = DockerEngine(log=self.log)
        self.way_in = WayIn(self.node, self.engine, self._device_uuids, simulated=self.facts.simulated)
        self.folders = DiskFolders(
            self.state_dir, simulated=self.facts.simulated, notice_of=self.announcements.notice_of
        )
        await self.folders.keep_only({lease.id for lease in self.allocator.leases()})
        parts = Parts(
            broker=str(self.state_dir),
            allocator=self.allocator,
            ledger=ledger,
            engine=self.engine,
            folders=self.folders,
            make_patch=self._make_patch,
            metrics=self.measures,
            prepare=self._prepare,
            before_close=self._before_close,
        )
        service = LeaseService(parts, self.log)
        service.restore()
        return service

    async def _close(self, servers: list[HTTPServer]) -> None:
        for server in servers:
            server.stop()
        if servers:
            unbind_socket(self.site.socket_path)
        for server in servers:
            await server.close_all_connections()
        await self.enforcement.stop()
        await self.engine.close()
        self.folders.close()

    async def _tick(self) -> None:
        told, looked = "", True
        while True:
            await asyncio.sleep(
                self.reconcile_seconds if looked else min(RETRY_SECONDS, self.reconcile_seconds)
            )
            try:
                looked = await self._look()
                told = ""
            except Exception as error:  # the top of the timer's loop
                looked = False
                self.measures.failed("reconcile")
                self.service.not_ready = NOT_SET_UP if isinstance(error, ConfigError) else NOT_READY
                if str(error) != told:  # only once, not in every round
                    self.log.error("%s", error, exc_info=not isinstance(error, GpuSpawnerError))
                told = str(error)

    async def _look(self) -> bool:
        """Makes a round. After the first successful one, and when the node has listed its GPUs, new leases
        are given.

        Returns False if Docker didn't answer.

        Raises ConfigError if containers can't get a device.
        """
        if not await self.service.reconcile_or_log():
            return False
        if self.enforcement.node_facts().fault and not self.service.ready.is_set():
            self.service.not_ready = GPUS_SILENT
        elif not self.service.ready.is_set():
            try:
                await self.way_in.probe()
            except EngineFault as fault:
                self.log.warning("%s; the next round tries again", fault)
                return False
            self.service.ready.set()
        await self.allocator.advance()
        return True

    def _device_uuids(self) -> tuple[str, ...]:
        return tuple(view.device.uuid for view in self.allocator.snapshot().devices)

    async def _prepare(self, lease: Lease) -> None:
        await self.enforcement.prepare(lease)

    async def _before_close(self, lease: Lease) -> None:
        if not self.facts.simulated:
            await self.closures.before_close(lease)

    def _make_patch(self, lease: Lease) -> ContainerPatch:
        return self.enforcement.patch(lease, self.way_in.patch(lease, self.folders.path(lease.id)))

    # ---- servers

    def _view(self) -> View:
        about = About(
            tiers=self.tiers,
            simulated=self.facts.simulated,
            metrics=self.measures,
            blind=self.enforcement.blind,
            node=self.enforcement.node_facts,
            usage=self.enforcement.usage,
            ended=self.journal.recent,
            uses=lambda: self.sampler.latest,
            deadline_of=self.endings.deadline_of,
            turns=self.enforcement.turns.views,
            unknown=self._unknown,
            disks=self.disks.now,
        )
        return View(self.allocator, about)

    def _site(self) -> Site:
        waits, simulated = self.site.queue_timeout, self.facts.simulated
        timeouts = {
            tier.name: tier.queue_timeout_seconds
            for tier in self.tiers
            if tier.queue_timeout_seconds is not None
        }
        return Site(
            self.service, self._view(), self.measures, waits, self.log, simulated, timeouts, self._unknown
        )

    def _unknown(self) -> frozenset[str]:
        """The leases whose server the hub doesn't know; none if no hub started this broker."""
        return frozenset() if self.unknown is None else self.unknown.ids()

    def _public_routes(self) -> MoreRoutes:
        """What the service has besides the pages that everybody sees."""
        site = self._site()
        classes = self._make_classes()
        return joined(
            public_rules(site, self.rules, self.endings),
            class_routes(ClassTools(site, self.rules, self.endings, classes)),
            class_pages(Teaching(classes, self.rules, self.facts.simulated)),
            unknown_pages(self.rules.audit, self._end_unknown),
            public_turns(site, self._turn_service(), self.rules.audit),
            admin_pages(self._admin_tools()),
        )

    def _admin_tools(self) -> AdminTools:
        return AdminTools(
            allocator=self.allocator,
            service=self.service,
            rules=self.rules,
            ledger=self.ledger,
            readings=self._readings,
            fault=lambda: self.enforcement.node_facts().fault,
            ended=self.ledger.ended,
            disks=self.disks.now,
            unknown=self._unknown,
            checkup=Checkup(lambda: ask_doctor(self.config_file and str(Path(self.config_file).absolute()))),
            simulated=self.facts.simulated,
        )

    def _readings(self) -> Readings:
        views = self.enforcement.turns.views()
        awake_on = {key: view.gpu_uuid for key, view in views.items() if view.gpu_uuid is not None}
        return Readings(self.enforcement.usage(), self.enforcement.xids(), self.enforcement.blind(), awake_on)

    async def _end_unknown(self, lease_id: str, author: str) -> None:
        await self.service.release(lease_id, f"ended by {author}: the hub doesn't know it")

    def _make_classes(self) -> Classes:
        parts = ClassParts(
            people=None if self.hub_api is None else HubPeople(self.hub_api),
            allocator=self.allocator,
            service=self.service,
            rules=self.rules,
            endings=self.endings,
            announcements=self.announcements,
            ledger=self.ledger,
            ended=self.journal.recent,
            use=lambda: self.sampler.latest,
        )
        return Classes(parts)

    def _serve_socket(self) -> HTTPServer:
        site = self._site()
        offers = Offers(self.rules, self.gate, self.allocator)
        routes = [
            *rule_routes(site, self.rules, self.endings),
            *offer_routes(site, self.rules, self.endings, offers),
            *turn_routes(site, self._turn_service()),
        ]
        server = HTTPServer(make_app(site, routes), max_body_size=MAX_BODY_BYTES)
        server.add_socket(bind_socket(self.site.socket_path))
        return server

    def _say_ready(self, count: int) -> None:
        kind = "simulated devices" if self.facts.simulated else "devices"
        ways = self.way_in.way.value if self.way_in.way else "not known yet: Docker doesn't answer"
        self.log.info(
            "The broker answers on %s: %d %s, injection %s", self.site.socket_path, count, kind, ways
        )


def _hub_api(environment: Mapping[str, str]) -> HubApi | None:
    """The hub's API; None if no hub started this process."""
    known = "JUPYTERHUB_API_TOKEN" in environment and "JUPYTERHUB_API_URL" in environment
    return HubApi(environment) if known else None


def _make_state_dir(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"The state folder {path} can't be created: {error.strerror}. Set another one with "
            "c.GpuSite.state_dir or GPUSPAWNER_STATE_DIR, or fix the permissions"
        ) from error


def main(argv: list[str] | None = None) -> int:
    """Runs a broker. If it can't start, it prints why and exits with EXIT_SETTINGS, or with 1 for a fault."""
    broker = GpuBroker()
    try:
        broker.initialize(argv)
        raise_limit(broker.log)
        asyncio.run(broker.run())
    except (ConfigError, Fault) as error:
        print(f"gpuspawner broker: {error}", file=sys.stderr)
        return EXIT_SETTINGS if isinstance(error, ConfigError) else 1
    return 0
