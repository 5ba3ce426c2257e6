"""NVIDIA's MPS control program: finds it, sends it commands, and finds its processes.

Commands and files as in NVIDIA's "Multi-Process Service" r580, "Tools and Interface Reference", and
nvidia-cuda-mps-control(1). Every command has a time limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import DeviceFault
from ..processes import Process, ProcessTable

PROGRAM = "nvidia-cuda-mps-control"
PID_FILE = f"{PROGRAM}.pid"
KNOWN_PLACES = ("/usr/bin", "/usr/local/nvidia/bin", "/opt/nvidia/bin", "/usr/local/bin")
COMM = PROGRAM[:15]
"""The name as the kernel shortens it; MPS's server has the same one (proc(5))."""
RUN_DIR = Path("/run/gpuspawner")
"""Where the pipe folders are. MPS's server runs as its client's user and reaches its sockets by their path,
so every parent folder must be accessible for that user; below /root they aren't. Measured with
driver 580: behind a folder of mode 0700 each client got CUDA error 805; 0711 is enough, also for the logs,
which the server inherits open."""
_LARGEST_LOG_BYTES = 16 << 20
_KEPT_LOG_BYTES = 1 << 20
_SIZE = re.compile(r"(\d+)\s*([MG])B?\s*$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class MpsProgram:
    """The control program's path; if None, `reason` says why there is no MPS, with the remedy."""

    path: Path | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class MpsLimits:
    """The daemon's limits for each client. `memory_bytes` None: MPS sets no limit.

    MPS accepts only whole MiB. The memory limit applies to each process, and its user can remove it, so it is
    only a first barrier: the guard enforces the quota.
    """

    percent: float
    memory_bytes: int | None = None

    @property
    def size(self) -> str | None:
        """The memory limit as MPS reads it: "8192M", rounded down."""
        return None if self.memory_bytes is None else f"{self.memory_bytes >> 20}M"


@dataclass(frozen=True, slots=True)
class MpsPlace:
    """The folders of one GPU's daemon. The pipe folder stays when it ends: containers have it mounted.

    `pipe`: sockets and pid file; mounted into containers, read-only. `log`: MPS's own logs and the
    daemon's output: `control.log`, `server.log`, `daemon.out`.
    """

    uuid: str
    pipe: Path
    log: Path

    def make(self) -> None:
        """Creates the folders, independent of the umask. Raises DeviceFault.

        Users with access to the pipe folder can compute through the daemon, but commanding it needs root
        (measured, driver 580).
        """
        try:
            self.log.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.pipe.mkdir(parents=True, exist_ok=True)
            for folder in (self.pipe.parent.parent, self.pipe.parent):
                folder.chmod(0o711)
            self.pipe.chmod(0o755)
        except OSError as error:
            raise DeviceFault(f"MPS's folder {error.filename} can't be created: {error.strerror}") from error

    def remove(self) -> None:
        """Removes the pipe folder when nobody has it mounted; the logs are kept."""
        self.clean()
        with contextlib.suppress(OSError):
            self.pipe.rmdir()

    def clean(self) -> None:
        """Removes a dead daemon's files from the pipe folder; the folder itself stays."""
        with contextlib.suppress(OSError):
            for leftover in self.pipe.iterdir():
                leftover.unlink()
        self.trim_logs()

    def trim_logs(self) -> None:
        """Empties each log that takes over 16 MiB of disk; its last MiB becomes `<name>.1`. Blocks.

        Daemon and servers keep their logs open and have no command to reopen them, so the file itself
        is cut. One that doesn't write at the file's end leaves a hole, which takes no disk.
        """
        with contextlib.suppress(OSError):
            for log in (*self.log.glob("*.log"), *self.log.glob("*.out")):
                if log.stat().st_blocks * 512 > _LARGEST_LOG_BYTES:
                    _cut(log)

    def environment(self) -> dict[str, str]:
        """For daemon and commands: only this GPU, these folders, and no other CUDA setting."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
        return {
            **ours,
            "CUDA_VISIBLE_DEVICES": self.uuid,
            "CUDA_MPS_PIPE_DIRECTORY": str(self.pipe),
            "CUDA_MPS_LOG_DIRECTORY": str(self.log),
        }


def _cut(log: Path) -> None:
    """Keeps the end of it beside it. Raises OSError."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _KEPT_LOG_BYTES))
        Path(f"{log}.1").write_bytes(file.read(_KEPT_LOG_BYTES))
    os.truncate(log, 0)


def pipes_of(state_dir: Path) -> Path:
    """The folder of the pipe folders of this state folder's broker: unique, and the same after a restart."""
    return RUN_DIR / f"mps-{hashlib.sha256(os.fsencode(state_dir.absolute())).hexdigest()[:8]}"


def place_of(uuid: str, state_dir: Path) -> MpsPlace:
    """The folders of a GPU's daemon, for the broker of this state folder."""
    return MpsPlace(uuid, pipes_of(state_dir) / uuid, state_dir.absolute() / "mps" / uuid)


def find_program(setting: str = "", *, uid: int | None = None) -> MpsProgram:
    """The control program of `setting` (a path), else on PATH, else where NVIDIA's packages put it."""
    if (os.geteuid() if uid is None else uid) != 0:
        # A daemon serves other users' programs only as root (MPS r580, "Security Considerations").
        return MpsProgram(None, "MPS needs a broker that runs as root: containers run as other users")
    if setting:
        if os.access(setting, os.X_OK) and os.path.isfile(setting):
            return MpsProgram(Path(setting).absolute())
        return MpsProgram(
            None, f"{setting} is not a program: set the path of {PROGRAM}, or remove the setting"
        )
    places = os.pathsep.join([os.environ.get("PATH", ""), *KNOWN_PLACES])
    found = shutil.which(PROGRAM, path=places)
    if found is None:
        return MpsProgram(None, f"{PROGRAM} was not found: install the driver's compute utilities")
    return MpsProgram(Path(found).absolute())


_OTHERS_READ = ("/bin/sh", "-c", 'umask 022 && exec "$0" "$@"')
"""The command after it makes files that others can't write. The event loop can't set a child's umask."""


class MpsControl:
    """Sends commands to one GPU's daemon through the control program."""

    def __init__(self, program: Path, place: MpsPlace, *, seconds: float = 5.0) -> None:
        self._program = str(program)
        self._place = place
        self._seconds = seconds

    async def launch(self, seconds: float) -> None:
        """Starts the daemon, which keeps running in the background (`-d`). Raises DeviceFault."""
        # Not through a pipe: the daemon keeps what it is given. It opens its socket to every user by itself
        # (0666, driver 580); the umask keeps logs and the privileged socket from being written by others.
        out = self._place.log / "daemon.out"
        with out.open("ab") as output:
            code = await self._run(
                [*_OTHERS_READ, self._program, "-d"], seconds, stdout=output, stderr=output,
                stdin=asyncio.subprocess.DEVNULL, cwd="/", start_new_session=True,
            )  # fmt: skip
        if code != 0:
            raise DeviceFault(f"MPS did not start (exit status {code}): see {out} and control.log beside it")

    async def ask(self, command: str, seconds: float | None = None) -> str:
        """The daemon's answer. Raises DeviceFault if it refuses or takes longer than `seconds`."""
        answer = bytearray()
        limit = self._seconds if seconds is None else seconds
        pipe = asyncio.subprocess.PIPE
        code = await self._run(
            [self._program],
            limit,
            f"{command}\n".encode(),
            answer,
            stdin=pipe,
            stdout=pipe,
            stderr=asyncio.subprocess.STDOUT,
        )
        text = answer.decode("utf-8", "replace").strip()
        if code != 0 or re.match(r"(error|failed|cannot|invalid|unknown)\b", text, re.IGNORECASE):
            raise DeviceFault(f"MPS refused {command!r}: {text[:200] or f'exit status {code}'}")
        return text

    async def _run(
        self,
        command: list[str],
        seconds: float,
        said: bytes = b"",
        answer: bytearray | None = None,
        **how: object,
    ) -> int:
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=self._place.environment(),
                **how,  # type: ignore[arg-type]
            )
        except OSError as error:
            raise DeviceFault(f"{self._program} can't be run: {error.strerror}") from error
        try:
            async with asyncio.timeout(seconds):
                out, _ = await process.communicate(said or None)
        except TimeoutError:
            words = said.decode().strip() or "starting"
            raise DeviceFault(f"MPS has not answered {words!r} for {seconds:g} s") from None
        finally:
            if process.returncode is None:
                await _kill(process)
        if answer is not None:
            answer.extend(out or b"")
        return process.returncode or 0

    async def set_limits(self, limits: MpsLimits) -> None:
        """Sets the limits for new servers, and for new clients of running servers. Raises DeviceFault.

        The device is 0, because the daemon sees only this GPU.
        """
        await self.ask(f"set_default_active_thread_percentage {limits.percent:g}")
        if limits.size is not None:
            await self.ask(f"set_default_device_pinned_mem_limit 0 {limits.size}")
        for server in await self.servers():
            await self.ask(f"set_active_thread_percentage {server} {limits.percent:g}")
            if limits.size is not None:
                await self.ask(f"set_device_pinned_mem_limit {server} 0 {limits.size}")
        await self._verify(limits)

    async def _verify(self, limits: MpsLimits) -> None:
        percent = await self.percent()
        if abs(percent - limits.percent) > 0.5:
            raise DeviceFault(f"MPS gives {percent:g} % of the GPU instead of {limits.percent:g} %")
        if limits.size is None:
            return
        answer = await self.ask("get_default_device_pinned_mem_limit 0")
        match = _SIZE.search(answer)  # if a driver uses other words, the guard still enforces the quota
        if match is None or limits.memory_bytes is None:
            return
        # The answer is in whole units, rounded down: driver 580 says "9G" of a limit of 10098M.
        unit_bytes = 1 << (30 if match[2] in "gG" else 20)
        if int(match[1]) != (limits.memory_bytes >> 20 << 20) // unit_bytes:
            raise DeviceFault(f"MPS's memory limit is {answer} instead of {limits.size}")

    async def percent(self) -> float:
        """The default active thread percentage ("25.0"): asked to see that the daemon answers."""
        answer = await self.ask("get_default_active_thread_percentage")
        try:
            return float(answer.split()[-1])
        except (ValueError, IndexError):
            raise DeviceFault(f"MPS answered {answer[:200]!r} instead of a percentage") from None

    async def servers(self) -> tuple[int, ...]:
        """The pids of the daemon's servers: one while there are clients. Raises DeviceFault."""
        answer = await self.ask("get_server_list")
        return tuple(int(line) for line in answer.split() if line.isdecimal())

    async def quit(self, seconds: float) -> None:
        """Ends daemon and servers. Raises DeviceFault if that takes longer."""
        await self.ask("quit", seconds)


async def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    with contextlib.suppress(TimeoutError):  # init reaps one that hangs in the driver
        async with asyncio.timeout(1):
            await process.wait()


def find_daemon(place: MpsPlace, table: ProcessTable) -> Process | None:
    """The daemon that serves the pipe folder now, also one of an earlier broker. Blocks for a short time."""
    try:
        pid = int((place.pipe / PID_FILE).read_text())
    except (OSError, ValueError):
        return None
    return _ours(pid, place, table)


def find_all(place: MpsPlace, table: ProcessTable) -> tuple[Process, ...]:
    """Daemon and servers of the pipe folder, without using its pid file. Blocks: reads all of /proc."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdecimal())
    return tuple(process for pid in pids if (process := _ours(pid, place, table)) is not None)


def _ours(pid: int, place: MpsPlace, table: ProcessTable) -> Process | None:
    """Checks its name, the folder in its environment, and that it runs outside containers, like the broker.

    The last check excludes a process in a container, which can set that name and environment itself.
    """
    try:
        if Path(f"/proc/{pid}/comm").read_text().rstrip("\n") != COMM:
            return None
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    process, broker = table.look(pid), table.look(os.getpid())
    if f"CUDA_MPS_PIPE_DIRECTORY={place.pipe}".encode() not in environment:
        return None
    return process if process and broker and process.container_ids == broker.container_ids else None
