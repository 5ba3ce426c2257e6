"""What all tests share: how long Hypothesis searches.

`make test-nightly` searches at length; the default keeps `make test-unit` under a minute.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No deadline: on a shared machine a slow example says nothing about the code.
_COMMON = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

settings.register_profile("default", _COMMON, max_examples=60, stateful_step_count=40)
settings.register_profile("nightly", _COMMON, max_examples=5000, stateful_step_count=200)
settings.load_profile("default")
