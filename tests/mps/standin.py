"""A stand-in for NVIDIA's MPS control program: the same options, files and answers, and no GPU.

`install` puts it into a folder under its real name, so that the kernel shows the processes as the real
ones. It records every command in `commands` in the log folder, and does what the file `orders` beside it
says, one order a line: `hang` (no answer until the line is gone), `die <command>`, `refuse <command>`,
`no-start` (the daemon ends at once), `slow-start <seconds>`, `stay` (does not quit), `percent <number>`
(says that instead of what was set).

Built after nvidia-cuda-mps-control(1) and the MPS guide r580.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

NAME = "nvidia-cuda-mps-control"
SERVER = "nvidia-cuda-mps-server"


def install(folder: Path) -> Path:
    """The program's path; made anew."""
    source = Path(__file__).read_text()
    for name in (NAME, SERVER):
        program = folder / name
        program.write_text(f"#!{sys.executable} -IS\n{source}")
        program.chmod(0o755)
    return folder / NAME


def _orders(log: Path) -> dict[str, str]:
    try:
        lines = (log / "orders").read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {line.partition(" ")[0]: line.partition(" ")[2] for line in lines}


class _Daemon:
    """What goes on behind the socket `control`."""

    def __init__(self, pipe: Path, log: Path) -> None:
        self.pipe, self.log = pipe, log
        self.percent = "100.0"
        self.limits: dict[str, str] = {}
        self.servers: list[subprocess.Popen[bytes]] = []

    def run(self) -> None:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(self.pipe / "control"))
        listening.listen()
        (self.pipe / f"{NAME}.pid").write_text(str(os.getpid()))
        while True:
            connection, _ = listening.accept()
            with connection:
                command = connection.recv(4096).decode().strip()
                with (self.log / "commands").open("a") as commands:
                    print(command, file=commands)
                while "hang" in _orders(self.log):
                    time.sleep(0.02)
                with contextlib.suppress(BrokenPipeError):
                    connection.sendall(self.answer(command).encode())

    def answer(self, command: str) -> str:
        orders = _orders(self.log)
        if "die" in orders and command.startswith(orders["die"]):
            os._exit(1)
        if "refuse" in orders and command.startswith(orders["refuse"]):
            return "1Error: operation not permitted\n"
        name, *words = command.split()
        method = getattr(self, f"_{name}", None)
        return "1Unknown command\n" if method is None else f"0{method(*words)}"

    def _set_default_active_thread_percentage(self, percent: str) -> str:
        self.percent = f"{float(percent):.1f}"
        return f"{self.percent}\n"

    def _get_default_active_thread_percentage(self) -> str:
        return f"{_orders(self.log).get('percent', self.percent)}\n"

    def _set_default_device_pinned_mem_limit(self, device: str, size: str) -> str:
        self.limits[device] = size
        return ""

    def _get_default_device_pinned_mem_limit(self, device: str) -> str:
        """Rounded down to whole GiB, as the control program of driver 580 answers."""
        size = self.limits.get(device, "")
        mebibytes = int(size.removesuffix("M")) if size.endswith("M") else 0
        return f"{mebibytes // 1024}G\n" if mebibytes >= 1024 else f"{size}\n"

    def _set_active_thread_percentage(self, server: str, percent: str) -> str:
        return ""

    def _set_device_pinned_mem_limit(self, server: str, device: str, size: str) -> str:
        return ""

    def _get_server_list(self) -> str:
        return "".join(f"{server.pid}\n" for server in self.servers if server.poll() is None)

    def _start_server(self, *_: str) -> str:
        program = Path(sys.argv[0]).with_name(SERVER)
        self.servers.append(subprocess.Popen([str(program)]))
        return ""

    def _quit(self) -> str:
        if "stay" in _orders(self.log):
            return ""
        for server in self.servers:
            server.kill()
            server.wait()
        (self.pipe / f"{NAME}.pid").unlink()
        os._exit(0)


def _main() -> int:
    if Path(sys.argv[0]).name == SERVER:
        time.sleep(3600)
        return 0
    pipe, log = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"]), Path(os.environ["CUDA_MPS_LOG_DIRECTORY"])
    if sys.argv[1:] == ["-d"]:
        return _start(pipe, log)
    command = sys.stdin.readline()
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(pipe / "control"))
        except OSError:
            print("Cannot find MPS control daemon process")
            return 1
        connection.sendall(command.encode())
        answer = b""
        while part := connection.recv(4096):
            answer += part
    print(answer[1:].decode(), end="")
    return int(answer[:1] or b"0")


def _start(pipe: Path, log: Path) -> int:
    orders = _orders(log)
    with (log / "environment").open("a") as record:
        names = ("CUDA_VISIBLE_DEVICES", "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
        all_names = sorted(name for name in os.environ if name.startswith("CUDA"))
        print(*(os.environ.get(name, "") for name in names), all_names, file=record)
    if "fail" in orders:
        print("no GPU that MPS could use", file=sys.stderr)
        return 1
    time.sleep(float(orders.get("slow-start", "0")))
    if os.fork():
        return 0
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.setsid()
    if "no-start" not in orders:
        _Daemon(pipe, log).run()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(_main())
