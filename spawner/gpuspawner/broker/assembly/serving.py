"""Makes what answers: the unix socket for the spawner, and the API and the pages behind the hub's login."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tornado.httpserver import HTTPServer

from ..api.answers import About, View
from ..api.classes import Classes, ClassParts
from ..api.offer import offer_routes
from ..api.public.actions import Actions
from ..api.public.classes import ClassTools, class_routes
from ..api.public.hub_servers import HubServers
from ..api.public.rules import MoreRoutes, joined, public_rules
from ..api.public.turns import public_turns
from ..api.rules import rule_routes
from ..api.socket import MAX_BODY_BYTES, Site, bind_socket, make_app
from ..api.turns import turn_routes
from ..leases.hub_people import HubPeople
from ..leases.offers import Offers
from ..pages import serve_pages
from ..pages.admin.base import AdminTools
from ..pages.admin.checkup import Checkup, ask_doctor
from ..pages.admin.handlers import admin_pages
from ..pages.classes.base import Teaching
from ..pages.classes.handlers import class_pages
from ..pages.own.desk import BrokerDesk
from ..pages.unknown.handlers import unknown_pages
from .deciding import Deciding
from .ground import Ground
from .leasing import Leasing
from .machine import Machine
from .observing import Observing


@dataclass(frozen=True, slots=True)
class Serving:
    """One a broker: what is shown and done by socket, API and pages."""

    ground: Ground
    deciding: Deciding
    machine: Machine
    leasing: Leasing
    observing: Observing

    def open_socket(self) -> HTTPServer:
        """Listens on the unix socket. Raises ConfigError."""
        site, rules = self._site(), self.deciding.rules
        offers = Offers(rules, self.deciding.gate, self.deciding.allocator)
        routes = [
            *rule_routes(site, rules, self.leasing.endings),
            *offer_routes(site, rules, self.leasing.endings, offers),
            *turn_routes(site, self.machine.turns),
        ]
        server = HTTPServer(make_app(site, routes), max_body_size=MAX_BODY_BYTES)
        server.add_socket(bind_socket(self.ground.settings.site.socket_path))
        return server

    def open_pages(self) -> list[HTTPServer]:
        """Listens where the hub wants its service; nowhere without a hub. Raises ConfigError."""
        config = self.ground.settings.config
        return serve_pages(self._view(), config, make_desk=self._make_desk, more=self._public_routes())

    def _view(self) -> View:
        enforcement, observing = self.machine.enforcement, self.observing
        about = About(
            tiers=self.ground.settings.tiers,
            simulated=self.machine.simulated,
            metrics=self.ground.metrics,
            blind=enforcement.blind,
            node=enforcement.node_facts,
            usage=enforcement.usage,
            ended=observing.journal.recent,
            uses=lambda: observing.sampler.latest,
            deadline_of=self.leasing.endings.deadline_of,
            turns=enforcement.turns.views,
            unknown=self.leasing.unknown_ids,
            disks=observing.disks.now,
        )
        return View(self.deciding.allocator, about)

    def _site(self) -> Site:
        settings, ground = self.ground.settings, self.ground
        waits, simulated = settings.site.queue_timeout, self.machine.simulated
        timeouts = {
            tier.name: tier.queue_timeout_seconds
            for tier in settings.tiers
            if tier.queue_timeout_seconds is not None
        }
        service, unknown = self.leasing.service, self.leasing.unknown_ids
        return Site(service, self._view(), ground.metrics, waits, ground.log, simulated, timeouts, unknown)

    def _public_routes(self) -> MoreRoutes:
        """What the service has besides the pages that everybody sees."""
        site, rules, endings = self._site(), self.deciding.rules, self.leasing.endings
        classes = self._make_classes()
        return joined(
            public_rules(site, rules, endings),
            class_routes(ClassTools(site, rules, endings, classes)),
            class_pages(Teaching(classes, rules, self.machine.simulated)),
            unknown_pages(rules.audit, self._end_unknown),
            public_turns(site, self.machine.turns, rules.audit),
            admin_pages(self._admin_tools()),
        )

    def _make_desk(self, api_url: str) -> BrokerDesk:
        rules, ground = self.deciding.rules, self.ground
        lease, tiers = self.deciding.allocator.lease, ground.settings.tiers
        actions = Actions(rules, HubServers(api_url), lease, tiers, self.machine.turns.act)
        return BrokerDesk(rules, ground.ledger, self.observing.sampler, actions)

    def _admin_tools(self) -> AdminTools:
        config_file = self.ground.settings.config_file
        return AdminTools(
            allocator=self.deciding.allocator,
            service=self.leasing.service,
            rules=self.deciding.rules,
            ledger=self.ground.ledger,
            readings=self.machine.readings,
            fault=lambda: self.machine.facts.fault,
            ended=self.ground.ledger.ended,
            disks=self.observing.disks.now,
            unknown=self.leasing.unknown_ids,
            checkup=Checkup(lambda: ask_doctor(config_file and str(Path(config_file).absolute()))),
            simulated=self.machine.simulated,
        )

    async def _end_unknown(self, lease_id: str, author: str) -> None:
        await self.leasing.service.release(lease_id, f"ended by {author}: the hub doesn't know it")

    def _make_classes(self) -> Classes:
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
        )
        return Classes(parts)
