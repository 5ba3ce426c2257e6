"""The image of a start: found on this machine, or pulled if the policy says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..core.errors import EngineFault, StartFault
from .docker import DockerEngine
from .pull_errors import explain
from .pulls import Pulls, Tell


@dataclass(frozen=True, slots=True)
class Images:
    """Where images come from, for one user. `policy` is DockerSpawner's `pull_policy`, in lower case."""

    docker: DockerEngine
    pulls: Pulls
    policy: str
    silence_seconds: float
    user: str

    async def fetch(self, image: str, tell: Tell) -> dict[str, Any]:
        """Docker's document of the image, which is pulled first if the policy says so. Raises StartFault,
        EngineFault.

        `tell` gets a sentence whenever a pull progresses. "skip" (DockerSpawner 14: like "never", but without
        an error for a missing image) returns an empty document then: creating the container fails instead.
        """
        present = await self.docker.find_image(image)
        stale = self.policy == "always" and not self.pulls.fresh(image)
        if stale or (present is None and self.policy in ("always", "ifnotpresent")):
            await self._pull(image, tell, present is not None)
            present = await self.docker.find_image(image)
        if present is None and self.policy != "skip":
            raise image_missing(image)
        return present or {}

    async def _pull(self, image: str, tell: Tell, here: bool) -> None:
        try:
            await self.pulls.pull(
                image,
                self.user,
                lambda feed, cancel: self.docker.pull_here(image, feed, cancel, self.silence_seconds),
                tell,
            )
        except EngineFault as fault:
            if fault.status is None:
                raise
            raise explain(image, fault, here=here, silence_seconds=self.silence_seconds) from fault


def image_missing(image: str) -> StartFault:
    """The message for an image that isn't on this machine and isn't pulled."""
    return StartFault(
        f"The image {image} isn't on this machine, and this hub doesn't pull images. "
        f"Admin: run 'make images', which builds the lab images, or 'docker pull {image}'.",
        "image_missing",
    )
