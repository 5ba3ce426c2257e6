"""Why an image could not be pulled, as a sentence with a remedy. Pure."""

from __future__ import annotations

from ..core.errors import EngineFault, StartFault
from .pulls import SILENT

_OURS = "gpuspawner/"

# What Docker says (20.10 and 28.5, with the registries of Docker, Quay and Debian's docker-registry), and
# what it means. The first match counts.
_MEANINGS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("no space left on device",),
        "disk_full",
        "This machine's disk is full: tell your admin. Admin: see 'docker system df', and free space with "
        "'docker image prune'.",
    ),
    (
        ("manifest unknown", "not found: manifest", "manifest for"),
        "image_missing",
        "The registry doesn't have it: check the name and the tag.",
    ),
    (
        ("toomanyrequests", "too many requests", "rate limit"),
        "registry_denied",
        "The registry got too many requests from this machine: try again later. Admin: "
        "'docker login' raises the limit of most registries.",
    ),
    (
        ("pull access denied", "unauthorized", "authentication required", "denied", "no basic auth",
         "forbidden"),
        "registry_denied",
        "The registry refuses it: the image doesn't exist, or needs a login. Check the name. Admin: "
        "'docker login' as the user that the hub runs as.",
    ),
    (
        ("http response to https", "x509", "certificate", "tls"),
        "registry_silent",
        "The connection to the registry isn't secure. Admin: install the registry's certificate, "
        "or add it to 'insecure-registries' in Docker's daemon.json.",
    ),
    (
        ("connection refused", "no such host", "i/o timeout", "timeout exceeded", "no route", "unreachable",
         "server misbehaving", "connection reset", "deadline exceeded", "eof"),
        "registry_silent",
        "The registry doesn't answer: try again in a few minutes, or choose an image that is here. "
        "Admin: check that this machine can reach it ('docker pull' on the command line).",
    ),
)  # fmt: skip


def explain(image: str, fault: EngineFault, *, here: bool = False, silence_seconds: float = 0) -> StartFault:
    """The message for an image that could not be pulled.

    `here`: an older image with this name exists here.
    """
    what = f"The image {image} could not be pulled" if here else f"The image {image} isn't here"
    what += ". " if here else " and could not be pulled. "
    use = " An older one is here. Admin: pull_policy = 'ifnotpresent' starts that." if here else ""
    if image.removeprefix("docker.io/").startswith(_OURS) and not here:
        use = " 'make images' builds the project's own."
    if fault.status == SILENT:
        return StartFault(
            f"{what}No data came for {silence_seconds:.0f} seconds: try again; the layers that have arrived "
            f"are kept. Admin: check the network to the registry.{use}",
            "pull_stalled",
        )
    words = str(fault).lower()
    for signs, reason, sentence in _MEANINGS:
        if any(sign in words for sign in signs):
            return StartFault(f"{what}{sentence}{use}", reason)
    return StartFault(
        f"{what}Docker says: {str(fault)[:300]}. Admin: run 'docker pull {image}' to see more.{use}",
        "image_missing",
    )
