"""Whether systemd has loaded its units again, which takes devices from containers that it doesn't know of."""

from __future__ import annotations

from pathlib import Path

SYSTEMD = Path("/run/systemd")


def reload_stamp(folder: Path = SYSTEMD) -> int | None:
    """A number that changes with each `systemctl daemon-reload`; None without systemd.

    A reload removes the folder `generator` and makes it again (systemd 252, `lookup_paths_flush_generator`),
    so the time of the folder above changes. It may change for other reasons, too.
    """
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return None
