"""The GPU page with a status read from the file $PAGE_STATUS: started by the hub of `page_hub_config.py`."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gpuspawner.broker.pages import make_handlers, make_settings
from tornado.web import Application


class FileView:
    """A broker that says what a file says."""

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(Path(os.environ["PAGE_STATUS"]).read_text("utf-8"))
        return status

    def stamp(self) -> object:
        return Path(os.environ["PAGE_STATUS"]).read_bytes()

    def tiers(self) -> dict[str, Any]:
        return {"simulated": True, "tiers": [{"name": "gpu", "title": "One GPU"}]}

    def metrics(self) -> bytes:
        return b""


async def main() -> None:
    handlers = make_handlers(FileView(), os.environ["JUPYTERHUB_SERVICE_PREFIX"])
    where = urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"])
    Application(handlers, **make_settings()).listen(where.port or 80, where.hostname or "127.0.0.1")
    await asyncio.Event().wait()


asyncio.run(main())
