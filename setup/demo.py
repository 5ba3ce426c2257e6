"""The settings of `make hub`, from the environment, checked before anything is downloaded or started."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gpuspawner.core.errors import ConfigError
from gpuspawner.hub.network import gateway_of
from gpuspawner.tools.doctor.reach import REMEMBERED

from images.table import read_table
from setup.steps import ROOT, SetupError

USER_LENGTH, ADMIN_LENGTH = 8, 32  # the least that JupyterHub's shared-password authenticator takes
SOCKET_BYTES = 100  # a unix socket's path may have 107
ROOM_BYTES = 1 << 20
DATABASE_SECONDS = 2.0
CONFIG = ROOT / "jupyterhub_config.py"
"""The project's own settings."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What `make hub` starts. `port` is the hub's; the next three are used inside."""

    port: int
    state_dir: Path
    name: str
    subnet: str
    image: str
    password: str
    admin_password: str
    config: Path = CONFIG
    base_url: str = "/"
    """The path of `c.JupyterHub.bind_url`, which the user's own file may set."""

    @property
    def url(self) -> str:
        """Where the browser goes."""
        return f"http://127.0.0.1:{self.port}{self.base_url}"

    @property
    def log(self) -> Path:
        """The output of hub, proxy and broker."""
        return self.state_dir / "hub.log"

    def environment(self) -> dict[str, str]:
        """What jupyterhub_config.py reads."""
        return {
            "GPUSPAWNER_PORT": str(self.port),
            "GPUSPAWNER_STATE_DIR": str(self.state_dir),
            "GPUSPAWNER_NAME": self.name,
            "GPUSPAWNER_SUBNET": self.subnet,
            "GPUSPAWNER_IMAGE": self.image,
            "GPUSPAWNER_PASSWORD": self.password,
            "GPUSPAWNER_ADMIN_PASSWORD": self.admin_password,
            "GPUSPAWNER_CONFIG": str(self.config),
        }


def remember(demo: Demo, environ: Mapping[str, str]) -> None:
    """Writes down what the hub was started with, without the passwords: `gpuspawner` beside it reads that."""
    kept = {key: value for key, value in demo.environment().items() if not key.endswith("PASSWORD")}
    if "GPUSPAWNER_SIMULATED" in environ:
        kept["GPUSPAWNER_SIMULATED"] = environ["GPUSPAWNER_SIMULATED"]
    (demo.state_dir / REMEMBERED).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def read_demo(environ: Mapping[str, str]) -> Demo:
    """The settings; creates the state folder and missing passwords. Raises SetupError with the remedy."""
    port = _port(environ.get("GPUSPAWNER_PORT", "8000"))
    name = environ.get("GPUSPAWNER_NAME") or "gpuspawner"
    subnet = environ.get("GPUSPAWNER_SUBNET") or "10.213.0.0/20"
    _check_names(name, subnet)
    given = {key: environ.get(f"GPUSPAWNER_{key}") for key in ("PASSWORD", "ADMIN_PASSWORD")}
    check_passwords(given["PASSWORD"], given["ADMIN_PASSWORD"])
    state_dir = prepare_state_dir(Path(environ.get("GPUSPAWNER_STATE_DIR") or ROOT / ".state"))
    made_up = _made_up_passwords(state_dir)
    password = made_up["user"] if given["PASSWORD"] is None else given["PASSWORD"]
    admin_password = made_up["admin"] if given["ADMIN_PASSWORD"] is None else given["ADMIN_PASSWORD"]
    return Demo(
        port=port,
        state_dir=state_dir,
        name=name,
        subnet=subnet,
        image=environ.get("GPUSPAWNER_IMAGE") or read_table().default_image.reference,
        password=password,
        admin_password=admin_password,
        config=_config(Path(environ.get("GPUSPAWNER_CONFIG") or CONFIG)),
    )


def with_base_url(demo: Demo) -> Demo:
    """The settings with the base URL of the hub's config file, which a separate process reads."""
    read = (
        "import sys; from pathlib import Path; from urllib.parse import urlsplit\n"
        "from gpuspawner.config.loading import load_settings\n"
        "from gpuspawner.core.errors import ConfigError\n"
        "try: hub = load_settings(Path(sys.argv[1])).JupyterHub\n"
        "except ConfigError as error: sys.exit(str(error))\n"
        "print(hub.get('base_url') or urlsplit(str(hub.get('bind_url', ''))).path or '/')\n"
    )
    environment = {**os.environ, **demo.environment()}
    command = [sys.executable, "-c", read, str(demo.config)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=demo.state_dir)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"The config file {demo.config} failed"]
        raise SetupError(f"{lines[-1][0].lower()}{lines[-1][1:]}", "correct it, then run this again")
    path = done.stdout.strip().splitlines()[-1].strip("/")
    return replace(demo, base_url=f"/{path}/" if path else "/")


def _config(given: Path) -> Path:
    """The settings that hub and broker read."""
    path = given.expanduser().absolute()
    if not path.is_file():
        raise SetupError(
            f"GPUSPAWNER_CONFIG={path} isn't there",
            "name a file that loads jupyterhub_config.py, or unset it",
        )
    return path


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65532:
        raise SetupError(
            f"GPUSPAWNER_PORT is {text!r}: that is not a port",
            "give a number from 1 to 65532, like GPUSPAWNER_PORT=8000",
        )
    return int(text)


def _check_names(name: str, subnet: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", name):
        raise SetupError(
            f"GPUSPAWNER_NAME is {name!r}: Docker can't name containers and volumes after it",
            "use up to 31 lower-case letters, digits and '-', like GPUSPAWNER_NAME=course",
        )
    try:
        gateway_of(subnet)
    except ConfigError as error:
        raise SetupError(f"GPUSPAWNER_SUBNET can't be used: {error}", "or unset it") from error


def check_passwords(password: str | None, admin_password: str | None) -> None:
    """Raises SetupError for a password that the hub's authenticator refuses, or with which login fails."""
    for name, value, length in (
        ("GPUSPAWNER_PASSWORD", password, USER_LENGTH),
        ("GPUSPAWNER_ADMIN_PASSWORD", admin_password, ADMIN_LENGTH),
    ):
        if value is not None and len(value) < length:
            what = "empty" if not value else f"{len(value)} characters long"
            raise SetupError(
                f"{name} is {what}: the hub needs {length} characters or more",
                "use a longer one, or unset it: then a password is generated and printed",
            )
    if password is not None and password == admin_password:
        raise SetupError(
            "GPUSPAWNER_PASSWORD and GPUSPAWNER_ADMIN_PASSWORD are the same",
            "use two different passwords: users with the first one must not be admin",
        )


def prepare_state_dir(folder: Path) -> Path:
    """Creates the folder, private and writable. Raises SetupError with the remedy."""
    folder = folder.expanduser().absolute()
    if len(os.fsencode(folder / "broker.sock")) > SOCKET_BYTES:
        raise SetupError(
            f"GPUSPAWNER_STATE_DIR={folder} is too long for the sockets inside it", "use a shorter path"
        )
    probe = folder / ".room"
    try:
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        probe.write_bytes(b"\0" * ROOM_BYTES)
    except OSError as error:
        raise _state_dir_error(folder, error) from error
    finally:
        if probe.parent.is_dir():
            probe.unlink(missing_ok=True)
    _check_database(folder / "jupyterhub.sqlite")
    return folder


def _state_dir_error(folder: Path, error: OSError) -> SetupError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SetupError(
            f"the disk of the state folder {folder} is full",
            "free some space (`docker system df` shows what Docker keeps), or set GPUSPAWNER_STATE_DIR to "
            "a folder on another disk",
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return SetupError(f"the state folder {folder} is not a folder", "set GPUSPAWNER_STATE_DIR to one")
    return SetupError(
        f"the state folder {folder} can't be written: {error.strerror}",
        "correct its permissions, or set GPUSPAWNER_STATE_DIR to a folder that you may write to",
    )


def _check_database(path: Path) -> None:
    """Raises SetupError if the hub's database exists but can't be read."""
    if not path.exists():
        return
    connection = sqlite3.connect(path, timeout=DATABASE_SECONDS)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.rollback()
    except sqlite3.OperationalError as error:
        raise SetupError(
            f"the hub's database {path} can't be used: {error}", "end the program that has it open"
        ) from error
    except sqlite3.DatabaseError as error:
        raise SetupError(
            f"the hub's database {path} is damaged: {error}",
            "restore a backup, or move the file away: the hub then starts with an empty one, and running "
            "notebooks have to be ended with `make clean-demo`",
        ) from error
    finally:
        connection.close()


def _made_up_passwords(state_dir: Path) -> dict[str, str]:
    """Passwords that are not set: generated once and kept, so that the next start prints the same."""
    path = state_dir / "passwords.json"
    try:
        kept = json.loads(path.read_text())
        if len(kept["user"]) >= USER_LENGTH and len(kept["admin"]) >= ADMIN_LENGTH:
            return {"user": str(kept["user"]), "admin": str(kept["admin"])}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing or not readable: new ones
    made_up = {"user": secrets.token_urlsafe(9), "admin": secrets.token_urlsafe(24)}
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(made_up, file)
    return made_up


def check_ports(demo: Demo) -> None:
    """Raises SetupError if another program listens on a port of hub, proxy or broker."""
    gateway = gateway_of(demo.subnet)
    places = [
        ("127.0.0.1", 0, "the hub"),
        ("127.0.0.1", 1, "the proxy's API"),
        (gateway, 2, "the hub inside"),
    ]
    for address, offset, purpose in [*places, ("127.0.0.1", 3, "the GPU page")]:
        port = demo.port + offset
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    continue  # the labs' network does not exist yet
                why = "is taken" if error.errno == errno.EADDRINUSE else f"can't be used ({error.strerror})"
                raise SetupError(
                    f"port {port}, which {purpose} needs, {why}",
                    f"end what listens there (`ss -ltnp 'sport = :{port}'` shows it), or set GPUSPAWNER_PORT "
                    "to the first of four free ports. If another hub listens there, give this one its own "
                    "GPUSPAWNER_STATE_DIR, GPUSPAWNER_NAME and GPUSPAWNER_SUBNET, too",
                ) from error


def lock(state_dir: Path) -> int:
    """Holds the state folder while the returned descriptor is open. Raises SetupError if another hub does."""
    descriptor = os.open(state_dir / "hub.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode().strip()
        os.close(descriptor)
        raise SetupError(
            f"a hub already runs on {state_dir} (process {holder or 'unknown'})",
            "stop it with Ctrl-C there, or give this one another GPUSPAWNER_STATE_DIR, GPUSPAWNER_PORT, "
            "GPUSPAWNER_NAME and GPUSPAWNER_SUBNET",
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor
