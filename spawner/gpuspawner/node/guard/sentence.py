"""The message for a user whose process was ended. Pure."""

from __future__ import annotations

from ...core.units import format_bytes
from .judge import Offence, Verdict


def sentence_of(verdict: Verdict) -> str:
    """The message: what happened, and what to do."""
    ended = f"Your process {verdict.seen.process.name!r} was ended:"
    if verdict.offence is Offence.NO_LEASE:
        return (
            f"{ended} it used a GPU that this server has no lease for. Use the GPU that the server was "
            "given; for another one, start a server with another tier."
        )
    if verdict.offence is Offence.BYPASSED_MPS:
        return (
            f"{ended} it bypassed MPS, which shares this GPU. Don't change the CUDA_MPS_ "
            "settings, and restart the kernel."
        )
    assert verdict.quota is not None
    assert verdict.quota.memory_bytes is not None
    used, quota = format_bytes(verdict.used_bytes), format_bytes(verdict.quota.memory_bytes)
    if used == quota:
        used = f"{format_bytes(verdict.used_bytes - verdict.quota.memory_bytes)} more than"
        return f"{ended} this server used {used} its {quota} of GPU memory{_for(verdict)}. {_ADVICE}"
    return f"{ended} this server used {used} of its {quota} of GPU memory{_for(verdict)}. {_ADVICE}"


_ADVICE = (
    "If it was a notebook's kernel, restart it; use smaller batches or a smaller model, and shut down "
    "kernels that you no longer need: each keeps its memory."
)


def _for(verdict: Verdict) -> str:
    return f" for {verdict.over_seconds:.1f} s" if verdict.over_seconds >= 0.05 else ""
