"""Whether a browser's request comes from a page of this service, by its headers. Pure.

The XSRF token alone keeps other sites out. This is a second wall: what a browser says of the sender can't be
changed by a page. Programs say nothing, and bring a token in place of a cookie.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

_OWN_SITES = ("same-origin", "none")
"""Values of Sec-Fetch-Site (W3C Fetch Metadata): a page of this origin, or the user themselves."""


def is_foreign(headers: Mapping[str, str]) -> bool:
    """Whether the request's sender is a page of another origin.

    Browsers send Sec-Fetch-Site where the address is https or localhost; it needs no knowledge of proxies.
    Elsewhere there is Origin ("null": a sandboxed or local page), which is compared with the host that the
    browser asked for. A request without both is no browser's.
    """
    site = headers.get("Sec-Fetch-Site")
    if site is not None:
        return site not in _OWN_SITES
    origin = headers.get("Origin")
    if origin is None:
        return False
    asked = (headers.get("X-Forwarded-Host", ""), headers.get("Host", ""))
    return not any(_is_at(origin, host.strip()) for each in asked for host in each.split(","))


def _is_at(origin: str, host: str) -> bool:
    """Whether the origin is this host. A proxy may have left the port out of the host."""
    try:
        sent = urlsplit(origin)
        known = urlsplit(f"//{host}")
        if not sent.hostname or sent.hostname != known.hostname:
            return False
        return known.port is None or known.port == (sent.port or _PORTS.get(sent.scheme))
    except ValueError:
        return False


_PORTS = {"http": 80, "https": 443}
