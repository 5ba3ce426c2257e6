"""The GPU page and its API, as the hub's service: `serve_pages` for the broker.

/services/gpu/             the page, in the hub's own templates
/services/gpu/live         the page's changing part, fetched by its script
/services/gpu/api/status   devices, leases, queue, as far as the asker may see them
/services/gpu/api/tiers    the tiers and how much of each is free
/services/gpu/api/quotas   (grants, report, sessions): the rules, for holders of `custom:gpu:read`, and to
                           change them of `custom:gpu:admin`
/services/gpu/api/turns    wake, yield: what a user may ask of the turns of a server
/services/gpu/metrics      Prometheus text, for holders of `custom:gpu:read`
/services/gpu/health       "the broker answers"; needs no login
"""

from __future__ import annotations

from ..api.visible import READ_SCOPE, BrokerView
from .handlers import make_handlers, make_settings
from .look import hub_of, look_of
from .rules import ADMIN_SCOPE, public_rules
from .serving import serve_pages
from .turns import public_turns

__all__ = [
    "ADMIN_SCOPE",
    "READ_SCOPE",
    "BrokerView",
    "hub_of",
    "look_of",
    "make_handlers",
    "make_settings",
    "public_rules",
    "public_turns",
    "serve_pages",
]
