"""The machine: doctor's findings, disk space, images; looked for in a thread when somebody asks."""

from __future__ import annotations

from dataclasses import dataclass

from tornado.web import HTTPError

from ....core.disk import Disk, DiskState
from ....protocol.pulls import ImageDocument
from ...observe.checkup import Report
from ..words import Moment, moment
from ..writing import Question, Said, Writing
from .base import AdminPage

_LEVELS = {DiskState.OK: "", DiskState.LOW: "warning", DiskState.FULL: "danger"}


@dataclass(frozen=True, slots=True)
class DiskLine:
    """A file system, and how full it is."""

    holds: str
    words: str
    used_percent: float
    level: str


@dataclass(frozen=True, slots=True)
class ImageLine:
    """An image, and where it is; while it is pulled, `percent` of its bytes is here, if that is known."""

    name: str
    words: str
    level: str
    pulls: bool
    percent: int | None


@dataclass(frozen=True, slots=True)
class MachinePage:
    """Everything that the templates show."""

    simulated: bool
    report: Report
    disks: tuple[DiskLine, ...]
    images: tuple[ImageLine, ...]
    as_of: Moment | None
    problems: int


class MachineHandler(AdminPage):
    """`GET POST admin/machine/`"""

    template = "admin_machine.html"
    live_template = "admin_machine_live.html"
    page = "machine/"
    refresh_seconds = 3.0

    async def content(self, *path: str) -> MachinePage:
        report = self.tools.checkup.report
        return MachinePage(
            simulated=self.tools.simulated,
            report=report,
            disks=tuple(map(_disk_line, self.tools.disks())),
            images=tuple(map(_image_line, self.tools.images())),
            as_of=None if report.at is None else moment(report.at.isoformat(), self.tools.clock()),
            problems=sum(line.level == "problem" for line in report.lines),
        )

    async def carry_out(self, what: str, *path: str) -> Said | Question:
        if what != "check" or not self.may_see(self.viewer):
            raise HTTPError(400, "no such change: %s", what)

        async def begin() -> Said:
            self.tools.checkup.begin()
            return Said("The check is under way: its result appears here.")

        return await self.write_down(Writing(self.viewer.read, "check machine", "machine"), begin)


def _disk_line(disk: Disk) -> DiskLine:
    used = 100 * (disk.total_bytes - disk.free_bytes) / max(1, disk.total_bytes)
    return DiskLine(disk.holds, disk.sentence(), round(used, 1), _LEVELS[disk.state])


def _image_line(image: ImageDocument) -> ImageLine:
    if image.pull is not None:
        pull = image.pull
        users = {0: "nobody waits", 1: "1 start waits"}.get(pull.waiting, f"{pull.waiting} starts wait")
        words = f"{pull.message.removeprefix(f'Pulling image {image.image}: ')}; {users} for it"
        return ImageLine(image.image, words, "", True, pull.percent)
    if image.here is None:
        return ImageLine(image.image, "not looked at yet", "secondary", False, None)
    if image.size_bytes is None:
        return ImageLine(image.image, "not on this machine", "warning", False, None)
    return ImageLine(image.image, f"on this machine, {image.size_bytes / 1e9:.1f} GB", "success", False, None)
