"""The fields at the end of every log line about a lease or its container."""

from __future__ import annotations

from ...core.model import Lease
from ...node.engine import Container


def log_context(lease: Lease) -> str:
    """The user, server, id, devices and container of a lease."""
    return (
        f"user={lease.user} server={lease.server or '-'} lease={lease.id}"
        f" devices={','.join(lease.device_uuids) or '-'} container={(lease.container_id or '-')[:12]}"
    )


def container_context(container: Container) -> str:
    """The same fields, from a container's labels."""
    found = container.labels
    return (
        f"user={found.user or '-'} server={found.server or '-'} lease={found.lease_id}"
        f" devices={','.join(found.device_uuids) or '-'} container={container.id[:12]}"
    )
