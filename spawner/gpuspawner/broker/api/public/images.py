"""`GET api/images`: which images are on the machine, and how far pulls are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ....protocol.messages import document
from ....protocol.pulls import ImageDocument, ImagesDocument
from ..access import READ_SCOPE
from .base import ApiUser, Route, Site
from .rules import MoreRoutes, lacks

Images = Callable[[], Sequence[ImageDocument]]


class ImagesHandler(ApiUser):
    """`GET api/images`"""

    images: Images

    def initialize(self, pages: Site, images: Images) -> None:
        self.know(pages)
        self.images = images

    def get(self) -> None:
        """200, or 403 without the scope for anybody."""
        if not self.viewer.read:
            self.show_refusal(lacks(READ_SCOPE))
            return
        self.answer(document(ImagesDocument(images=tuple(self.images()))))


def image_routes(images: Images) -> MoreRoutes:
    """The route, for `make_handlers`."""

    def routes(pages: Site) -> list[Route]:
        return [(f"{pages.prefix}api/images", ImagesHandler, {"pages": pages, "images": images})]

    return routes
