"""The hub's own metrics: how long each phase of a start takes, beside JupyterHub's under /hub/metrics.

JupyterHub serves prometheus_client's default registry. It counts the starts themselves, and the failed ones
by reason, in `server_spawn_duration_seconds`.
"""

from __future__ import annotations

from prometheus_client import Histogram

from .progress import Step

_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)
_PHASES = Histogram(
    "gpuspawner_spawn_phase_seconds", "How long a phase of a start took", ["phase"], buckets=_BUCKETS
)
for _step in Step:
    _PHASES.labels(_step.value)


def phase_passed(step: Step, seconds: float) -> None:
    """Counts a phase that was completed; a start that fails or is cancelled doesn't count where it ended."""
    _PHASES.labels(step.value).observe(seconds)
