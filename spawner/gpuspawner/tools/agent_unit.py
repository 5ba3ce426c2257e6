"""The systemd unit of a machine's agent: written where systemd runs, shown where it doesn't."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import ConfigError

UNIT = "gpuspawner-agent.service"
UNITS = Path("/etc/systemd/system")
RUNNING = Path("/run/systemd/system")
"""Exists where systemd is the init system (sd_booted(3))."""


@dataclass(frozen=True, slots=True)
class AgentUnit:
    """What the agent is started with. `broker` is HOST:PORT, `config_file` may be ""."""

    broker: str
    machine: str
    state_dir: Path
    config_file: str = ""

    @property
    def command(self) -> tuple[str, ...]:
        """The agent, run by this Python."""
        config = (f"--config={Path(self.config_file).absolute()}",) if self.config_file else ()
        module = "gpuspawner.node.remote.agent_process"
        return (sys.executable, "-m", module, f"--broker={self.broker}", f"--name={self.machine}", *config)

    def text(self) -> str:
        """The unit file. The agent ends neither labs nor MPS daemons when it is stopped: KillMode=process."""
        return f"""\
[Unit]
Description=GPUs of this machine for the gpuspawner broker at {self.broker}
After=network-online.target docker.service nvidia-persistenced.service
Wants=network-online.target

[Service]
ExecStart={_quoted(self.command)}
Environment={_quoted([f"GPUSPAWNER_STATE_DIR={self.state_dir}"])}
Restart=always
RestartSec=2
KillMode=process

[Install]
WantedBy=multi-user.target
"""

    def install(self, units: Path = UNITS) -> None:
        """Writes the unit and starts it. Raises ConfigError if that can't be done."""
        try:
            (units / UNIT).write_text(self.text())
            for words in (("daemon-reload",), ("enable", "--now", UNIT)):
                subprocess.run(("systemctl", *words), check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            raise ConfigError(f"systemd did not start {UNIT}: {error.stderr.strip()}") from error
        except OSError as error:
            why = f"{units / UNIT} can't be written: {error.strerror}. Run this as root"
            raise ConfigError(why) from error


def _quoted(words: Sequence[str]) -> str:
    """As systemd reads words: "%" begins a specifier, "$" a variable (systemd.service(5))."""
    return " ".join(shlex.quote(word.replace("%", "%%").replace("$", "$$")) for word in words)
