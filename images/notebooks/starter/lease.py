"""The quota of this server: what the lease says, what PyTorch sees, and what to do where they differ."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from IPython.display import display

from .device import cpu_cores
from .draw import COLOURS, human_bytes

LEASE_FILE = Path("/run/gpuspawner/lease.json")
"""The lease of this server, written by the broker; absent on a server without a GPU."""

_KINDS = {
    "tier": str,
    "mode": str,
    "simulated": bool,
    "device_uuids": list,
    "memory_bytes": int,
    "compute_percent": int | float,
}
"""What the entries of a lease are that are read here, unless they are null or missing."""


@dataclass(frozen=True)
class Quota:
    """What this server may use. Sizes are bytes; None where nothing sets a limit or it is unknown."""

    tier: str | None = None
    leased: bool = False
    mode: str | None = None
    """How the device is shared: `whole`, `slice` or `mig`; None without a lease."""
    simulated: bool = False
    device_uuids: tuple[str, ...] = ()
    memory_bytes: int | None = None
    compute_percent: float | None = None
    gpus: tuple[str, ...] = ()
    gpu_memory_bytes: int | None = None
    problem: str = field(default="", compare=False)

    @property
    def kind(self) -> str:
        """`real`, `simulated` or `absent`: what PyTorch can compute on, not what a file promises."""
        if self.gpus:
            return "real"
        return "simulated" if self.simulated else "absent"


def quota(lease_file: Path = LEASE_FILE) -> Quota:
    """Read the lease of this server and what PyTorch sees. Never raises: a broken file is a `problem`."""
    lease, problem = {}, ""
    try:
        lease = json.loads(lease_file.read_text())
        if not isinstance(lease, dict):
            raise ValueError("not a JSON object")
        for name, kind in _KINDS.items():
            if not isinstance(lease.get(name), kind | None):
                raise ValueError(f"{name} is {lease[name]!r}")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        lease, problem = (
            {},
            f"{lease_file} can't be read ({error}); restart the server to have it written again.",
        )
    names = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    simulated = bool(lease.get("simulated", os.environ.get("GPUSPAWNER_SIMULATED") == "1"))
    return Quota(
        tier=lease.get("tier") or os.environ.get("GPUSPAWNER_TIER"),
        leased=bool(lease),
        mode=lease.get("mode"),
        simulated=simulated,
        device_uuids=tuple(lease.get("device_uuids") or ()),
        memory_bytes=lease.get("memory_bytes"),
        compute_percent=lease.get("compute_percent"),
        gpus=names,
        gpu_memory_bytes=sum(torch.cuda.get_device_properties(i).total_memory for i in range(len(names)))
        or None,
        problem=problem,
    )


_ENFORCED_BY = {
    "whole": "the container's device list: no other GPU is visible here, and this one nowhere else.",
    "mig": "the hardware: the instance has its own memory and its own processors.",
    "slice": "a guard outside this container: the program that takes more memory than its share is ended.",
}


def _quota_lines(own: Quota) -> list[tuple[str, str]]:
    """The quota as pairs of heading and sentence."""
    lines = [("Tier", own.tier or "unknown: this server wasn't started by gpuspawner")]
    if own.kind == "real":
        lines.append(("GPU", f"{', '.join(own.gpus)}: real"))
    elif own.kind == "simulated":
        lines.append(("GPU", "simulated: there is no real GPU, and the cells below run on the CPU"))
    else:
        lines.append(("GPU", "none: the cells below run on the CPU"))
    if own.leased:
        share = human_bytes(own.memory_bytes) if own.memory_bytes else "no limit known"
        if own.gpu_memory_bytes:
            share += f" of {human_bytes(own.gpu_memory_bytes)}"
        lines.append(("Memory", share))
        if own.compute_percent is not None:
            lines.append(("Compute", f"{own.compute_percent:g} %"))
        lines.append(("Mode", own.mode or "unknown"))
        if own.kind == "simulated":
            lines.append(("Enforced by", "nothing: the GPU is simulated."))
        elif own.mode in _ENFORCED_BY:
            lines.append(("Enforced by", _ENFORCED_BY[own.mode]))
    lines.append(("CPU", f"{cpu_cores()} cores for this server"))
    advice = advise(own)
    return lines + ([("Advice", advice)] if advice else [])


def advise(own: Quota) -> str:
    """What to do next if there is no GPU in here, or something is wrong with it; "" if all is well."""
    if own.problem:
        return own.problem
    if own.leased and not own.simulated and not own.gpus:
        if torch.version.cuda is None:
            return "You hold a GPU, but this image's PyTorch was built for CPUs: choose a CUDA lab image."
        return "You hold a GPU, but PyTorch can't see it: restart the server, or else tell your admin."
    if own.kind == "simulated":
        return "Nothing to do: run everything. Cells that need a real GPU say so and are skipped."
    if own.kind == "absent":
        return (
            "Run everything: the sizes are smaller, and cells that need a GPU are skipped. "
            "To run those too: File → Hub Control Panel → Stop My Server, then start it with a GPU tier."
        )
    return ""


def show_quota() -> None:
    """Show what this server may use, whether the GPU is real, and what keeps the quota."""
    own = quota()
    lines = _quota_lines(own)
    colour = {"real": COLOURS[2], "simulated": COLOURS[1], "absent": COLOURS[6]}[own.kind]
    rows = "".join(
        f"<tr><th style='text-align:left;padding-right:1.5em;vertical-align:top'>{head}</th>"
        f"<td style='text-align:left'>{text}</td></tr>"
        for head, text in ((_escape(h), _escape(t)) for h, t in lines)
    )
    html = f"<table style='border-left:6px solid {colour};margin-left:0'>{rows}</table>"
    plain = "\n".join(f"{head:8} {text}" for head, text in lines)
    display({"text/html": html, "text/plain": plain}, raw=True)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
