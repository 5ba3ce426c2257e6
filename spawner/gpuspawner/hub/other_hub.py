"""Whether another hub of the same name has labs on this Docker Engine: then this one must not start.

The name (`c.GpuDockerSpawner.hub_id`) says whose a container is. Two hubs of one name would each take the
other's containers for their own; their state folders tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..core import labels
from ..core.errors import ConfigError
from ..protocol.call import Call

_NAMED = 5
"""How many containers a message names."""


def state_folder(state_dir: str) -> str:
    """The state folder as it stands in the label of containers: an absolute path."""
    return str(Path(state_dir).absolute())


def check_alone(call: Call, hub_id: str, folder: str) -> None:
    """Raises ConfigError if labs run that a hub of this name, but with another state folder, has started.

    `call` as in `call.py`; raises EngineFault. It reads, and changes nothing.
    """
    running = call("containers", filters={"label": [f"{labels.HUB}={hub_id}", labels.STATE_FOLDER]})
    if found := others(running, folder):
        raise ConfigError(_refusal(hub_id, *found))


def others(running: Iterable[Mapping[str, Any]], folder: str) -> tuple[str, tuple[str, ...]] | None:
    """The other state folder, and the names of its containers; None if there is none. Pure.

    `running` are documents of Docker's list of containers. Of several folders it is the first by name.
    """
    by_folder: dict[str, list[str]] = {}
    for item in running:
        other = str((item.get("Labels") or {}).get(labels.STATE_FOLDER, folder))
        if other != folder:
            names = item.get("Names") or [str(item.get("Id", ""))[:12]]
            by_folder.setdefault(other, []).append(str(names[0]).lstrip("/"))
    if not by_folder:
        return None
    first = min(by_folder)
    return first, tuple(sorted(by_folder[first]))


def _refusal(hub_id: str, other: str, names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    which = f"--filter label={labels.HUB}={hub_id} --filter 'label={labels.STATE_FOLDER}={other}'"
    return (
        f"another hub has the name {hub_id!r}, too: its state folder is {other}, and its labs run "
        f"({', '.join(names[:_NAMED])}{more}). Two hubs on one machine differ in all four: GPUSPAWNER_PORT, "
        "GPUSPAWNER_STATE_DIR, GPUSPAWNER_NAME and GPUSPAWNER_SUBNET (without the project's config file: "
        "bind_url, state_dir, hub_id with prefix, and network_name with subnet). If that hub is no more, "
        "because its state folder was lost or moved, end its labs (homes are kept): "
        f"docker rm -f $(docker ps -q {which})"
    )
