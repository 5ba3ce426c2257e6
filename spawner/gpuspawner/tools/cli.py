"""`gpuspawner doctor | status | plan | broker`; the other commands are in files of their own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from traitlets import Bool, Int, Unicode, default
from traitlets.config import Application, Config

from .. import __version__
from ..broker import app as broker_app
from ..broker.app import GpuBroker
from ..broker.decide.allow.rules import fold, make_base
from ..broker.decide.replay.course import Split, parse_course, parse_split
from ..broker.ledger.sessions import PastSession
from ..config.quotas import parse_properties
from ..config.site import GpuSite
from ..config.swarm import GpuSwarm
from ..core.decision import Decision
from ..core.errors import BadOption, BrokerUnavailable, ConfigError, EngineFault, LedgerFault, Refusal
from ..core.model import Device
from ..core.text import for_terminal
from ..core.units import format_bytes, ordinal
from ..hub.docker import DockerEngine
from ..node.inventory import open_inventory
from ..node.inventory.simulated import parse_simulated
from ..node.turning import main_memory_bytes
from ..protocol.client import BrokerClient
from ..protocol.rules import SessionsDocument
from . import homes, plan
from .doctor import (
    ELSEWHERE,
    Facts,
    Finding,
    Level,
    brief,
    collect,
    collect_machine,
    examine,
    examine_machine,
    state_beside,
    unreachable,
)
from .doctor.checks import main_job_runs
from .doctor.machine import image_references

_MARKS = {Level.OK: "[green]ok[/]", Level.NOTE: "[yellow]note[/]", Level.PROBLEM: "[bold red]problem[/]"}


PIPE_WIDTH = 200
"""Columns of the tables if stdout is not a terminal."""


def _of(module: str, name: str) -> Callable[[Application], Application]:
    """Makes a command of another module, which is imported only when it is used."""

    def make(parent: Application) -> Application:
        command: Application = getattr(import_module(f"gpuspawner.tools.{module}"), name)(parent=parent)
        return command

    return make


class Command(Application):
    """What the commands share: the settings of the site, and JSON instead of tables."""

    version = __version__
    classes = [GpuSite]  # noqa: RUF012 - traitlets reads it as a plain class attribute
    aliases = {"config": "Command.config_file"}  # noqa: RUF012
    flags = {"json": ({"Command": {"json": True}}, "print JSON instead of tables")}  # noqa: RUF012
    exit_status = 0

    config_file = Unicode(
        help="""
        The file with the settings, the hub's own `jupyterhub_config.py`.

        Default: `jupyterhub_config.py` in the current folder, if it exists; else none, and
        every setting has its default.
        Example: `gpuspawner doctor --config /srv/jupyterhub/jupyterhub_config.py`
        """,
    ).tag(config=True)

    @default("config_file")
    def _config_file_default(self) -> str:
        here = Path("jupyterhub_config.py")
        return str(here) if here.is_file() else ""

    json = Bool(
        False,
        help="""
        Print JSON instead of tables.

        Default: off. Keys carry their unit in the name.
        Example: `gpuspawner status --json`
        """,
    ).tag(config=True)

    def parse_command_line(self, argv: list[str] | None = None) -> None:
        """Ends with status 2 and a sentence for an option that there isn't; traitlets asks for its value."""
        for word in argv or ():
            name = word.partition("=")[0].removeprefix("--")
            if word == "--":
                break
            if word.startswith("--") and "." not in name and name not in self._options():
                close = get_close_matches(name, self._options(), 1)
                hint = f"did you mean --{close[0]}?" if close else "see --help"
                words = f"there is no option --{for_terminal(name)}: {hint}"
                print(f"{self.name.replace('-', ' ')}: {words}", file=sys.stderr)
                self.exit(2)
        super().parse_command_line(argv)

    def _options(self) -> set[str]:
        return {"help", "help-all", "version", *self.aliases, *self.flags}

    def settings(self) -> GpuBroker:
        """The broker's settings, without a broker; the command line takes precedence. Raises ConfigError."""
        broker = GpuBroker()
        with state_beside(self.config_file):
            broker.initialize(["--config", self.config_file] if self.config_file else [])
            broker.update_config(self.cli_config)
            broker.site = GpuSite(parent=broker)
            broker.site.state_dir = broker.site.state_dir  # its default is read from the environment
        broker.tiers = broker.site.parsed_tiers()
        broker.quotas = broker.site.parsed_quotas()
        broker.idle = broker.site.parsed_idle()
        return broker


class Doctor(Command):
    """Checks driver, GPUs, Docker, images, ledger and broker, and says what to do."""

    name = "gpuspawner-doctor"
    description = __doc__
    flags = {  # noqa: RUF012
        **Command.flags,
        "all": ({"Doctor": {"all": True}}, "with simulated GPUs: also what only real GPUs need"),
        "machine": ({"Doctor": {"machine": True}}, "check a machine with an agent; the broker is elsewhere"),
    }
    aliases = {**Command.aliases, "images": "Doctor.images"}  # noqa: RUF012

    machine = Bool(
        False,
        help="""
        Check this machine as one with an agent: not the hub, the broker and the ledger, which are elsewhere.

        Default: off. The broker's own `gpuspawner doctor` asks each agent for it.
        Example: `gpuspawner doctor --machine`
        """,
    ).tag(config=True)
    images = Unicode(
        help="""
        With --machine: the images that labs need here, with commas between them.

        Default: none; the broker names those of its tiers.
        Example: `gpuspawner doctor --machine --images=gpuspawner/lab-torch:0.1.0`
        """,
    ).tag(config=True)

    all = Bool(
        False,
        help="""
        Show every note, also those on what only real GPUs need.

        Default: off; with simulated GPUs these notes are one line. JSON always has all.
        Example: `gpuspawner doctor --all`
        """,
    ).tag(config=True)

    def start(self) -> None:
        """Prints the findings; `exit_status` is 1 if a server with a GPU can't run here."""
        try:
            facts = self._collect()
        except ConfigError as error:
            facts = Facts(config_error=str(error))
        findings = examine_machine(facts) if self.machine else examine(facts)
        self.exit_status = 0 if main_job_runs(findings) else 1
        if self.json:
            print(
                json.dumps(
                    {"simulated": facts.simulated, "findings": [asdict(finding) for finding in findings]},
                    indent=1,
                )
            )
        else:
            shown = findings if self.all else brief(findings, facts)
            show_findings(shown, facts.simulated, make_console())

    def _collect(self) -> Facts:
        """Raises ConfigError."""
        if not self.machine:
            return collect(self.settings())
        return collect_machine(self.settings(), tuple(filter(None, self.images.split(","))))


class Status(Command):
    """Shows the devices and leases of the running broker."""

    name = "gpuspawner-status"
    description = __doc__

    def start(self) -> None:
        """Prints the tables; `exit_status` is 1 if the broker does not answer."""
        try:
            socket_path = self.settings().site.socket_path
        except ConfigError as error:
            self._fail(str(error))
            return
        try:
            status, zone = asyncio.run(ask_status(socket_path))
        except BrokerUnavailable as error:
            reason = unreachable(error, socket_path, self.config_file)
            self._fail(f"{reason}. {ELSEWHERE}; `gpuspawner doctor` says more.")
            return
        if self.json:
            print(json.dumps(status, indent=1))
        else:
            show_status(status, zone, make_console())

    def _fail(self, sentence: str) -> None:
        self.exit_status = 1
        print(f"gpuspawner status: {for_terminal(sentence)}", file=sys.stderr)


class Homes(Command):
    """Lists the homes that Docker keeps with their sizes, archives or removes those of users.

    `gpuspawner homes`; `gpuspawner homes archive ada ben --to=/srv/archive`; `gpuspawner homes remove ada`;
    `gpuspawner homes retire ada --to=/srv/archive` archives and then removes. In a Swarm, the list says which
    machine has which home, and `gpuspawner homes move ada gpu-b` moves one to another machine; its user's
    servers must be stopped. With `--copied`, the files are there already, and only its place is changed.
    """

    name = "gpuspawner-homes"
    description = __doc__
    aliases = {**Command.aliases, "to": "Homes.to"}  # noqa: RUF012
    flags = {  # noqa: RUF012
        **Command.flags,
        "yes": ({"Homes": {"yes": True}}, "remove without a further question"),
        "copied": ({"Homes": {"copied": True}}, "move: the files are on the other machine now"),
    }

    copied = Bool(
        False,
        help="""
        Whether the files are on the other machine already, in a volume of that name: `move` copies nothing.

        Default: off. For homes that you bring there yourself, as from the archive of a machine that is lost.
        Example: `gpuspawner homes move ada gpu-b --copied`
        """,
    ).tag(config=True)
    to = Unicode(
        ".",
        help="""
        Folder into which `archive` writes a tar file for each home.

        Default: the current folder. An existing file of that name is kept, and the command ends.
        Example: `gpuspawner homes archive ada --to=/srv/archive`
        """,
    ).tag(config=True)
    yes = Bool(
        False,
        help="""
        Whether `remove` removes; without it, it says what it would remove.

        Default: off, because a removed home can't be restored.
        Example: `gpuspawner homes remove ada --yes`
        """,
    ).tag(config=True)

    def start(self) -> None:
        """Runs the action in the first word; `exit_status` is 1 if it failed or needs --yes."""
        verb, *users = self.extra_args or ["list"]
        try:
            settings = self.settings()
            call = DockerEngine({}, {}).call_here
            patterns = homes.patterns_of(settings.config)
            found, own = homes.list_homes(call, patterns), ""
            shared = settings.config.get("GpuSwarm", Config()).get("shared_homes")
            if settings.site.engine == "swarm" and not shared:
                own = homes.own_name(call)
                found = homes.placed(call, found, patterns, own)
            if verb == "list":
                self._show(found)
                if not found:
                    print(f"gpuspawner homes: {homes.why_none(call, settings.config)}", file=sys.stderr)
            elif verb == "move" and len(users) == 2 and own:
                self._move(settings, homes.of_users(found, users[:1]), users[1])
            elif verb in ("archive", "remove", "retire") and users:
                if not found:
                    raise ConfigError(homes.why_none(call, settings.config))
                chosen = homes.of_users(found, users)
                if far := [home for home in chosen if home.machine not in ("", own)]:
                    raise ConfigError(f"{far[0].name} is on the machine {far[0].machine}: run this there")
                self._change(verb, call, chosen, image_references(settings))
            else:
                raise ConfigError(
                    "use `list`, `archive USER …`, `remove USER …` or `retire USER …`; in a Swarm also `move "
                    "USER MACHINE`"
                )
        except (ConfigError, EngineFault, Refusal) as error:
            self._fail(str(error))
        except OSError as error:
            self._fail(f"{error.filename or self.to} can't be written: {error.strerror}")

    def _fail(self, sentence: str) -> None:
        self.exit_status = 1
        print(f"gpuspawner homes: {sentence}", file=sys.stderr)

    def _move(self, settings: GpuBroker, chosen: tuple[homes.HomeVolume, ...], machine: str) -> None:
        """Moves them one after the other. Raises Refusal."""
        moving = import_module("gpuspawner.tools.home_moving").Moving(settings.site.socket_path, print)
        for home in chosen:
            if not asyncio.run(moving.move(home, machine, copied=self.copied)):
                self.exit_status = 1

    def _show(self, found: tuple[homes.HomeVolume, ...]) -> None:
        if self.json:
            listed = [{**asdict(home), "login": home.login} for home in found]
            print(json.dumps(listed, indent=1))
            return
        if not found:
            return
        several = any(home.machine for home in found)
        machine = ("Machine",) if several else ()
        shown = table("Homes", "User", *machine, "Size", "Limit", "In use", "Volume")
        for home in found:
            limit = format_bytes(home.limit_bytes) if home.limit_bytes else ""
            size, used = format_bytes(home.size_bytes), "yes" if home.in_use else ""
            place = f"{home.machine}, moving to {home.moving_to}" if home.moving_to else home.machine
            where = (cell(place),) if several else ()
            shown.add_row(cell(home.shown_user), *where, size, limit, used, cell(home.name))
        make_console().print(shown)

    def _change(
        self, verb: str, call: homes.Call, chosen: tuple[homes.HomeVolume, ...], images: tuple[str, ...]
    ) -> None:
        for home in chosen:
            if verb != "remove" and not images:
                raise ConfigError("no image is set that could read the home: set c.GpuDockerSpawner.image")
            if verb == "archive":
                print(homes.archive(call, home, Path(self.to), images[0]))
            elif verb == "retire":
                print(homes.retire(call, home, Path(self.to), images[0]))
            elif self.yes:
                homes.remove(call, home)
                print(f"removed {home.name}")
            else:
                self.exit_status = 1
                print(f"would remove {home.name} ({format_bytes(home.size_bytes)}): add --yes to do it")


class PlanCommand(Command):
    """Shows what a class would get from the GPUs, split in several ways; exit status 1 if it doesn't fit."""

    name = "gpuspawner-plan"
    description = __doc__
    aliases = {  # noqa: RUF012
        **Command.aliases,
        "class": "PlanCommand.course",
        "devices": "PlanCommand.devices",
        "split": "PlanCommand.split",
        "homes": "PlanCommand.homes",
        "weeks": "PlanCommand.weeks",
        "picture": "PlanCommand.picture",
        "groups": "PlanCommand.groups",
        "tier": "PlanCommand.tier",
    }
    flags = {  # noqa: RUF012
        **Command.flags,
        "recorded": ({"PlanCommand": {"recorded": True}}, "replay the ledger's sessions instead of a class"),
        "quotas": ({"PlanCommand": {"quotas": True}}, "apply the quotas, and say who would be refused"),
    }

    course = Unicode(
        "",
        help="""
        The class: how many students, when, how much of the time each computes, how much memory each needs.

        Default: none, so the sessions in the ledger are replayed; if there are none, an invented class of 30
        students with a whole GPU each, and the answer says so. Parts are separated by commas, days by +.
        Example: `gpuspawner plan --class "30 students, Mon+Thu 10-12, busy 30%, 6 GB"`
        """,
    ).tag(config=True)

    devices = Unicode(
        "",
        help="""
        The GPUs to plan with, written as `c.GpuSite.simulated_devices`; of several machines with their names.

        Default: those of this machine, or the simulated ones of the settings; with several machines, those
        that the running broker knows.
        Example: `gpuspawner plan --devices "gpu-a: 4 x H100 80GB; gpu-b: 8 x A100 40GB"`
        """,
    ).tag(config=True)

    split = Unicode(
        "",
        help="""
        How the GPUs are shared: `whole`, `8 slices` (of each GPU), `slices of 10 GB`, `turns` (as the pools
        of that mode in the settings say), `pools` (those of the settings, on the machines that they name);
        several ways separated by commas. The answer (and the exit status) is for the first; the others are
        shown beside it. With `pools`, a class asks for the tier that `--tier` names, or for the first that
        has the memory.

        Default: whole, and 2, 4 and 8 slices of each GPU; for a class turns, too, if the settings have such a
        pool; of several machines also the pools of the settings.
        Example: `gpuspawner plan --split "8 slices, whole"`
        """,
    ).tag(config=True)

    homes = Unicode(
        "",
        help="""
        Whether homes are on one machine each (`local`): then who comes again gets GPUs there, or waits for
        them; or on all (`shared`). It matters only with several machines.

        Default: as the settings say: local, unless c.GpuSwarm.shared_homes is on.
        Example: `gpuspawner plan --devices "a: 4 x H100 80GB; b: 4 x H100 80GB" --homes shared`
        """,
    ).tag(config=True)

    weeks = Int(
        15,
        min=1,
        help="""
        How many weeks are replayed; with `--recorded`, how many weeks back.

        Default: 15, a term.
        Example: `gpuspawner plan --weeks 1`
        """,
    ).tag(config=True)

    recorded = Bool(
        False,
        help="""
        Replay the sessions in the ledger instead of a class.

        Default: off.
        Example: `gpuspawner plan --recorded --split "whole, 4 slices"`
        """,
    ).tag(config=True)

    quotas = Bool(
        False,
        help="""
        Apply the quotas of the settings, what was changed and granted at run time, the limits that hub groups
        have in their properties (as the broker last saw them), and lab sessions; say who would be refused and
        why. Limits on tiers count for the ledger's sessions, and for a class with `--tier`.

        Default: off, so nobody is limited.
        Example: `gpuspawner plan --quotas --groups students`
        """,
    ).tag(config=True)

    groups = Unicode(
        "",
        help="""
        The hub groups of the class's students, separated by commas: their quotas count with `--quotas`.

        Default: none, so the quotas for everybody count.
        Example: `gpuspawner plan --quotas --groups students`
        """,
    ).tag(config=True)

    tier = Unicode(
        "",
        help="""
        The tier of the settings that the class asks for: with `--quotas` it is looked at who may use it.

        Default: none, so limits on tiers don't count for a class.
        Example: `gpuspawner plan --class "30 students, Mon 10-12" --quotas --groups students --tier slice`
        """,
    ).tag(config=True)

    picture = Unicode(
        "",
        help="""
        Write the first week as a picture, an SVG or PNG by its name: GPUs held and people waiting.

        Default: none. It needs matplotlib: `pip install 'gpuspawner[plan]'`.
        Example: `gpuspawner plan --picture week.svg`
        """,
    ).tag(config=True)

    def start(self) -> None:
        """Prints the splits as a table, and one line that says whether the class fits."""
        try:
            self._plan()
        except (ConfigError, BadOption, LedgerFault) as error:
            self.exit_status = 2
            print(f"gpuspawner plan: {error}", file=sys.stderr)

    def _plan(self) -> None:
        self._check_options()
        devices = self._devices()
        simulated = all(each.simulated for each in devices)
        fleet = plan.fleet_of(devices, has_local_homes=self._has_local_homes())
        splits = self._splits(fleet, simulated)
        wants_ledger = self.recorded or not self.course
        sessions: tuple[PastSession, ...] = ()
        decisions: tuple[Decision, ...] = ()
        if wants_ledger or self.quotas:
            since = datetime.now(UTC) - timedelta(weeks=self.weeks)
            sessions, decisions = plan.read_recorded(self.settings().database_url, since)
        quotas = self._plan_quotas(decisions)
        if wants_ledger and (sessions or self.recorded):
            if self.split and any(each.turns for each in splits):
                raise BadOption(
                    "Turns are forecast for a class, not for the ledger's sessions: give --class."
                )
            splits = tuple(each for each in splits if each.turns is None)
            plans, answer = plan.plan_recorded(fleet, splits, sessions, quotas), ""
            about = f"{len(sessions)} sessions of the last {self.weeks} weeks, as the ledger has them."
        else:
            course = parse_course(self.course or plan.INVENTED)
            quotas = replace(quotas, zero=plan.next_monday(datetime.now(UTC)))
            plans = plan.plan_class(fleet, splits, course, self.weeks, quotas)
            answer, about = plan.verdict(course, plans), "" if self.course else plan.NO_HISTORY
            self.exit_status = 0 if plan.fits(plans[0]) else 1
        if self.picture:
            plan.draw(plans, Path(self.picture))
        if self.json:
            document = {"answer": answer, "about": about, "splits": plan.as_json(plans)}
            print(json.dumps(document, indent=1))
            return
        if about:
            print(f"{about}\n")
        plan.show(plans, make_console())
        if answer:
            print(f"\n{answer}")

    def _splits(self, fleet: plan.Fleet, simulated: bool) -> tuple[Split, ...]:
        """Those that are asked for, or the default ones. Raises BadOption or ConfigError."""
        texts = [each.strip().casefold() for each in self.split.split(",") if each.strip()]
        several, site = len(fleet.machines) > 1, self.settings().site
        found: list[Split] = []
        for text in texts:
            if text == "turns":
                found += self._turn_splits(fleet, simulated)
            elif text == "pools":
                found.append(plan.pools_split(site, fleet))
            else:
                found.append(parse_split(text, fleet.gpus))
        if not texts:
            found = [*plan.default_splits(fleet.gpus)]
            pools = site.parsed_pools() if self.config_file or not self.devices else ()
            if several and pools:
                found.append(plan.pools_split(site, fleet))
            elif any(each.turns for each in pools):
                found += self._turn_splits(fleet, simulated)
        return tuple(plan.labelled(each, site, fleet) for each in found)

    def _turn_splits(self, fleet: plan.Fleet, simulated: bool) -> tuple[Split, ...]:
        if len(fleet.machines) > 1:
            raise BadOption(
                "Turns are forecast for the GPUs of one machine: give those with --devices, or take --split "
                "pools, which counts the seats of each machine."
            )
        site = self.settings().site
        host = plan.machine_of(simulated, main_memory_bytes())
        return plan.turn_splits(site.parsed_pools(), site.parsed_tiers(), fleet.gpus, host)

    def _has_local_homes(self) -> bool:
        """Raises BadOption, ConfigError."""
        words = {"local": True, "shared": False}
        if self.homes:
            if self.homes not in words:
                raise BadOption(f"--homes is {self.homes!r}: give local or shared.")
            return words[self.homes]
        return not GpuSwarm(parent=self.settings()).shared_homes

    def _check_options(self) -> None:
        """Raises BadOption for options that contradict each other or would do nothing."""
        if self.course and self.recorded:
            raise BadOption("--class and --recorded are both given: a plan is for one of them.")
        if self.groups and (self.recorded or not self.course):
            raise BadOption(
                "--groups are those of a class: give --class, too. The ledger has those of its own."
            )
        pools = "pools" in [each.strip().casefold() for each in self.split.split(",")]
        if (self.groups or (self.tier and not pools)) and not self.quotas:
            raise BadOption("--groups and --tier only count with --quotas: add it.")
        if self.tier and not self.course:
            raise BadOption("--tier is what a class asks for: give --class, too.")

    def _plan_quotas(self, decisions: Iterable[Decision]) -> plan.PlanQuotas:
        site = self.settings().site
        names = [each.name for each in site.parsed_tiers()]
        if self.tier and self.tier not in names:
            raise BadOption(f"There is no tier {self.tier!r} in the settings: there are {', '.join(names)}.")
        if not self.quotas:
            return replace(plan.NO_QUOTAS, tier=self.tier)
        known = site.known()
        rules = fold(make_base(site.quotas, known), decisions, known)
        parsed = (parse_properties(group, values, known) for group, values in rules.properties.items())
        return plan.PlanQuotas(
            quotas=rules.quotas,
            entries=rules.entries,
            properties=tuple(each for each in parsed if each is not None),
            sessions=rules.sessions,
            tiers=known.tiers,
            groups=tuple(each.strip() for each in self.groups.split(",") if each.strip()),
            tier=self.tier,
        )

    def _devices(self) -> tuple[Device, ...]:
        if self.devices:
            return parse_simulated(self.devices, "--devices")
        settings = self.settings()
        if settings.agents_address:
            try:
                status, _ = asyncio.run(ask_status(settings.site.socket_path))
            except BrokerUnavailable:
                print("The broker doesn't answer: these are the GPUs of this machine alone.", file=sys.stderr)
            else:
                return plan.devices_of(status)
        with closing(open_inventory(self.settings().site)) as inventory:
            return inventory.devices()


class GpuSpawnerApp(Application):
    """Gives every notebook user of a JupyterHub on plain Docker a GPU of their own."""

    name = "gpuspawner"
    description = __doc__
    version = __version__
    subcommands = {  # noqa: RUF012
        "doctor": (lambda parent: Doctor(parent=parent), "check this machine and say what to do"),
        "status": (lambda parent: Status(parent=parent), "show the devices and leases of the running broker"),
        "quota": (_of("rules_cli", "Quota"), "show and change what users and groups may have"),
        "report": (_of("rules_cli", "Report"), "show who used how many GPU-hours"),
        "session": (_of("rules_cli", "Session"), "show and change lab sessions"),
        "audit": (_of("history_cli", "AuditCommand"), "show who changed what, when and why"),
        "timeline": (_of("history_cli", "TimelineCommand"), "show when which server held which GPUs"),
        "guard": (_of("history_cli", "GuardCommand"), "show the processes that the guard ended"),
        "images": (_of("history_cli", "ImagesCommand"), "show which images are on this machine"),
        "homes": (lambda parent: Homes(parent=parent), "list, measure, archive and remove users' homes"),
        "plan": (
            lambda parent: PlanCommand(parent=parent),
            "show what a class would get from these GPUs, and whether it fits",
        ),
        "translate-profiles": (
            _of("profiles_cli", "TranslateProfiles"),
            "translate KubeSpawner's profile_list to tiers",
        ),
        "node": (_of("node_cli", "NodeCommand"), "let other machines join the broker; run their agent"),
        "broker": (GpuBroker, "run the broker in this terminal"),
    }

    def start(self) -> None:
        """Runs the subcommand, or lists the subcommands."""
        if self.subapp is None:
            self.print_help()
        else:
            self.subapp.start()


def main(argv: list[str] | None = None) -> int:
    """Runs `gpuspawner`; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["broker"]:
        return broker_app.main(arguments[1:])
    if arguments and not arguments[0].startswith("-") and arguments[0] not in GpuSpawnerApp.subcommands:
        known = ", ".join(GpuSpawnerApp.subcommands)
        print(f"gpuspawner: there is no command {arguments[0]!r}: use {known}", file=sys.stderr)
        return 2
    app = GpuSpawnerApp()
    app.initialize(arguments)
    app.start()
    return int(getattr(app.subapp, "exit_status", 0))


async def ask_status(socket_path: str) -> tuple[dict[str, Any], str]:
    """The broker's status, and the site's time zone as the broker has it."""
    client = BrokerClient(socket_path)
    try:
        return await client.status(), await site_zone(client)
    finally:
        await client.close()


async def site_zone(client: BrokerClient) -> str:
    """The site's time zone as the broker has it: without --config a command has only the default."""
    return (await client.ask("/api/sessions?limit=1", SessionsDocument)).timezone


def make_console() -> Console:
    """As wide as the terminal; without a terminal wide enough that a pipe gets whole lines."""
    return Console(emoji=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def show_findings(findings: tuple[Finding, ...], simulated: bool, console: Console) -> None:
    """The report as a table, with what to do below each finding."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = cell(finding.text)
        if finding.remedy:
            text += f"\n→ {cell(finding.remedy)}"
        table.add_row(_MARKS[finding.level], cell(finding.subject), text)
    console.print(table)
    kind = "simulated GPU" if simulated else "GPU"
    if main_job_runs(findings):
        console.print(f"\nServers with a {kind} can run here.")
    else:
        console.print(f"\n[bold red]Servers with a {kind} can't run here yet:[/] see each problem above.")


def show_status(status: dict[str, Any], zone: str, console: Console) -> None:
    """Devices, leases and queue of a status document as tables, in the site's time zone."""
    since = f"Since ({zone})"
    if status["simulated"]:
        console.print("The GPUs are [bold]simulated[/]: servers get leases, but compute on the CPU.\n")
    if len(status["machines"]) > 1:
        show_machines(status["machines"], zone, console)
    numbers: dict[str, str] = {}
    devices = table("Devices", "GPU", "Model", "Memory", "State", since, "UUID")
    for device in status["devices"]:
        simulated = " (simulated)" if device["simulated"] else ""
        where = f" of {device['node']}" if device["node"] else ""
        number = numbers[device["uuid"]] = ("–" if device["index"] is None else str(device["index"])) + where
        devices.add_row(
            cell(number),
            cell(device["model"]) + simulated,
            format_bytes(device["memory_bytes"]),
            _state(device),
            local_time(device["since"], zone),
            device["uuid"],
        )
    console.print(devices)
    leases = table("Leases", "User", "Server", "Tier", "State", since, "GPU", "Notice")
    for lease in status["leases"]:
        names = [lease[key] for key in ("user", "server", "tier", "state")]
        gpus = ", ".join(numbers.get(uuid, "–") for uuid in lease["device_uuids"])
        unknown = "not known to the hub: end it on the GPU page." if lease["unknown_to_hub"] else ""
        notice = " ".join(filter(None, (unknown, lease["notice"])))
        leases.add_row(*map(cell, names), local_time(lease["since"], zone), cell(gpus), cell(notice))
    console.print(leases)
    if status["queue"]:
        queue = table("Waiting", "Place", "User", "Server", "Tier", since)
        for entry in sorted(status["queue"], key=lambda entry: entry["position"]):  # over all pages
            names = [cell(entry[key]) for key in ("user", "server", "tier")]
            queue.add_row(ordinal(entry["position"]), *names, local_time(entry["since"], zone))
        console.print(queue)


_STATES = {"ready": "green", "draining": "yellow", "not in use": "yellow", "away": "red", "refused": "red"}


def show_machines(machines: Sequence[dict[str, Any]], zone: str, console: Console) -> None:
    """A table of `MachineDocument`s; "gpus" None: the broker doesn't say what the machine has."""
    columns = ("Name", "State", f"Since ({zone})", "Last heard of", "Version", "GPUs", "Leases")
    shown = table("Machines", *columns)
    for each in machines:
        colour = _STATES.get(each["state"])
        state = cell(each["state"]) if colour is None else f"[{colour}]{each['state']}[/]"
        known = each["gpus"] is not None
        shown.add_row(
            cell(each["name"]) + (" (the broker's own)" if each["own"] else ""),
            "\n".join([state, *map(cell, filter(None, (each["reason"], *each["notices"])))]),
            local_time(each["since"], zone),
            _heard(each, zone) if known else "–",
            cell(each["release"]) or "–",
            _gpus(each) if known else "–",
            str(each["leases"]) if known else "–",
        )
    console.print(shown)


def _heard(machine: Mapping[str, Any], zone: str) -> str:
    """When the machine's agent was heard last; it says every two seconds that it lives."""
    if machine["heard_at"] is not None:
        return local_time(machine["heard_at"], zone)
    return "not since the broker began" if machine["state"] in ("away", "refused") else "now"


def _gpus(machine: Mapping[str, Any]) -> str:
    """How many, and how many of them aren't in service or are drained."""
    out = machine["gpus"] - machine["in_service"]
    parts = (
        f"{out} out of service" if out else "",
        f"{machine['drained']} drained" if machine["drained"] else "",
    )
    more = ", ".join(filter(None, parts))
    return f"{machine['gpus']} ({more})" if more else str(machine["gpus"])


def cell(text: str) -> str:
    """A name or sentence of somebody else for rich: none of it is markup or an order to the terminal."""
    return escape(for_terminal(text))


def table(title: str, *columns: str) -> Table:
    """An empty table in the common style."""
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "UUID")
    return table


def _state(device: dict[str, Any]) -> str:
    holder = ""
    if device["user"] is not None:
        server = f" ({cell(device['server'])})" if device["server"] else ""
        holder = f"{cell(device['user'])}{server}"
    total = device.get("total_slices")
    if total is not None:
        users = ", ".join(dict.fromkeys(cell(share["user"]) for share in device["shares"]))
        holder = f"{device['free_slices']} of {total} slices free" + (f"\n{users}" if users else "")
    if device.get("total_seats") is not None:
        seats = f"{device['free_seats']} of {device['total_seats']} seats in turns free"
        holder = f"{holder} is awake\n{seats}" if holder else seats
    if not device["healthy"]:
        return f"[red]out of service[/] {holder}\n{cell(device['reason'])}".strip()
    if device.get("drained"):
        return f"[yellow]drained[/] {holder}".strip()
    return holder or "[green]free[/]"


def local_time(at: datetime | str | None, zone: str, *, seconds: bool = True) -> str:
    """A time (ISO 8601, if it is text) in the site's time zone, whose name the table has; "" for None."""
    if at is None:
        return ""
    local = (datetime.fromisoformat(at) if isinstance(at, str) else at).astimezone(ZoneInfo(zone))
    return f"{local:%Y-%m-%d %H:%M:%S}" if seconds else f"{local:%Y-%m-%d %H:%M}"


if __name__ == "__main__":
    sys.exit(main())
