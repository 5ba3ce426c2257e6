"""Makes what answers: the unix socket for the spawner, and the API and the pages behind the hub's login."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tornado.httpserver import HTTPServer

from ...config.hub_name import hub_of
from ..api.answers import About, View
from ..api.classes import Classes, ClassParts
from ..api.homes import home_routes
from ..api.machines import machine_routes
from ..api.offer import offer_routes
from ..api.public.actions import Actions
from ..api.public.classes import ClassTools, class_routes
from ..api.public.feed import feed_routes
from ..api.public.history import HistoryTools, history_routes
from ..api.public.hub_servers import HubServers
from ..api.public.images import image_routes
from ..api.public.leases import lease_routes
from ..api.public.local import LocalServers, local_routes
from ..api.public.rules import MoreRoutes, joined, public_rules
from ..api.pulls import pull_routes
from ..api.rules import hub_routes
from ..api.socket import MAX_BODY_BYTES, Site, bind_socket, make_app
from ..api.turns import turn_routes
from ..leases.calendar_feeds import CalendarFeeds, read_key
from ..leases.home_moves import HomeMoves
from ..leases.hub_people import HubPeople
from ..leases.offers import Offers
from ..observe.checkup import Checkup, ask_doctor
from ..observe.failures import LoopFailures
from ..pages.admin.base import AdminTools
from ..pages.admin.handlers import admin_pages
from ..pages.classes.base import Teaching
from ..pages.classes.handlers import class_pages
from ..pages.own.desk import BrokerDesk
from ..pages.own.lab import LabReadings, LabSources
from ..pages.serving import page_url, serve_pages
from ..pages.unknown.handlers import unknown_pages
from .deciding import Deciding
from .ground import Ground
from .leasing import Leasing
from .machines import Machines
from .observing import Observing


@dataclass(frozen=True)
class Serving:
    """One a broker: what is shown and done by socket, API and pages."""

    ground: Ground
    deciding: Deciding
    machines: Machines
    leasing: Leasing
    observing: Observing
    homes: HomeMoves | None = None
    """Of a Swarm."""

    def open_socket(self) -> HTTPServer:
        """Listens on the unix socket. Raises ConfigError."""
        site, rules = self._site, self.deciding.rules
        rules.feeds = CalendarFeeds(page_url(os.environ), read_key(self.ground.settings.state_dir))
        offers = Offers(rules, self.deciding.gate, self.deciding.allocator)
        routes = [
            *hub_routes(site, rules, self.leasing.endings),
            *offer_routes(site, rules, self.leasing.endings, offers),
            *turn_routes(site, self.machines.turn_service),
            *pull_routes(site, self.observing.images.tell),
            *machine_routes(site, self.machines.check),
            *home_routes(site, rules, self.leasing.endings, self.homes),
            *local_routes(self._view, hub_of(self.ground.settings.config), self._local_api()),
        ]
        server = HTTPServer(make_app(site, routes), max_body_size=MAX_BODY_BYTES)
        server.add_socket(bind_socket(self.ground.settings.site.socket_path))
        return server

    def open_pages(self) -> list[HTTPServer]:
        """Listens where the hub wants its service; nowhere without a hub. Raises ConfigError."""
        config = self.ground.settings.config
        return serve_pages(self._view, config, make_desk=self._make_desk, more=self._public_routes())

    def lab_readings(self) -> LabReadings:
        """Writes what each lab's status bar shows."""
        sources = LabSources(
            leases=self.deciding.allocator.leases,
            uses=lambda: self.observing.sampler.latest,
            deadline_of=self.leasing.endings.deadline_of,
            turns=self.machines.turns.views,
            page_url=page_url(os.environ),
            simulated=self.machines.simulated,
        )
        failures = LoopFailures("lab_readings", self.ground.metrics, self.ground.log)
        return LabReadings(sources, self.leasing.folders.write_uses, failures)

    @cached_property
    def _view(self) -> View:
        """One for socket, API and pages: it remembers the parts of its documents."""
        machines, observing = self.machines, self.observing
        about = About(
            tiers=self.ground.settings.tiers,
            simulated=machines.simulated,
            metrics=self.ground.metrics,
            blind=machines.blind,
            node=machines.facts,
            usage=machines.usage,
            ended=observing.journal.recent,
            uses=lambda: observing.sampler.latest,
            deadline_of=self.leasing.endings.deadline_of,
            turns=machines.turns.views,
            unknown=self.leasing.unknown_ids,
            disks=observing.disks.now,
            machines=machines.views,
        )
        return View(self.deciding.allocator, about)

    @cached_property
    def _site(self) -> Site:
        settings, ground = self.ground.settings, self.ground
        waits, simulated = settings.site.queue_timeout, self.machines.simulated
        timeouts = {
            tier.name: tier.queue_timeout_seconds
            for tier in settings.tiers
            if tier.queue_timeout_seconds is not None
        }
        service, unknown = self.leasing.service, self.leasing.unknown_ids
        return Site(
            service,
            self._view,
            ground.metrics,
            waits,
            ground.log,
            simulated,
            timeouts,
            unknown,
            hurry=self.deciding.allocator.waits.hurry,
        )

    def _public_routes(self) -> MoreRoutes:
        """What the service has besides the pages that everybody sees."""
        rules = self.deciding.rules
        return joined(
            self._api(),
            feed_routes(rules),
            class_pages(Teaching(self._classes, rules, self.machines.simulated)),
            unknown_pages(rules.audit, self._end_unknown),
            admin_pages(self._admin_tools()),
        )

    def _api(self) -> MoreRoutes:
        """What the API has for those who are responsible for others."""
        site, rules, endings = self._site, self.deciding.rules, self.leasing.endings
        return joined(
            public_rules(site, rules, endings),
            class_routes(ClassTools(site, rules, endings, self._classes)),
            image_routes(self.observing.images.now),
            history_routes(HistoryTools(site, rules, endings, self.ground.ledger, self._checkup)),
        )

    def _local_api(self) -> MoreRoutes:
        """All of the API, for the socket: nobody has a token of the hub there, so servers end without it."""
        allocator, hub = self.deciding.allocator, hub_of(self.ground.settings.config)
        servers = LocalServers(hub, allocator.leases, self.leasing.service.release)
        tiers, turn = self.ground.settings.tiers, self.machines.turn_service.act
        actions = Actions(self.deciding.rules, servers, allocator.lease, tiers, turn)
        return joined(lambda site: lease_routes(site, actions), self._api())

    def _make_desk(self, api_url: str) -> BrokerDesk:
        rules, ground = self.deciding.rules, self.ground
        lease, tiers = self.deciding.allocator.lease, ground.settings.tiers
        actions = Actions(rules, HubServers(api_url), lease, tiers, self.machines.turn_service.act)
        return BrokerDesk(rules, ground.ledger, self.observing.sampler, actions)

    def _admin_tools(self) -> AdminTools:
        return AdminTools(
            allocator=self.deciding.allocator,
            service=self.leasing.service,
            rules=self.deciding.rules,
            ledger=self.ground.ledger,
            readings=self.machines.readings,
            fault=lambda: self.machines.facts().fault,
            ended=self.ground.ledger.ended,
            disks=self.observing.disks.now,
            images=self.observing.images.now,
            machines=self.machines.views,
            unknown=self.leasing.unknown_ids,
            checkup=self._checkup,
            simulated=self.machines.simulated,
        )

    @cached_property
    def _checkup(self) -> Checkup:
        """One for pages and API: they show the same result."""
        config_file = self.ground.settings.config_file
        return Checkup(lambda: ask_doctor(config_file and str(Path(config_file).absolute())))

    async def _end_unknown(self, lease_id: str, author: str) -> None:
        await self.leasing.service.release(lease_id, f"ended by {author}: the hub doesn't know it")

    @cached_property
    def _classes(self) -> Classes:
        hub, observing = self.ground.hub_api, self.observing
        parts = ClassParts(
            people=None if hub is None else HubPeople(hub),
            allocator=self.deciding.allocator,
            service=self.leasing.service,
            rules=self.deciding.rules,
            endings=self.leasing.endings,
            announcements=self.deciding.announcements,
            ledger=self.ground.ledger,
            ended=observing.journal.recent,
            use=lambda: observing.sampler.latest,
            stop_through_hub=None if hub is None else HubServers(hub.url).stop,
        )
        return Classes(parts)
