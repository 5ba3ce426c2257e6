"""Tells JupyterLab's status bar what this server uses of its GPU quota: the numbers of the page "My GPU".

The broker writes them to `/run/gpuspawner/use` while the server has a GPU. This extension of Jupyter Server
passes them on at `gpuspawner/use`, to whoever may use the server; `labextension/` draws them.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.utils import url_path_join
from tornado.web import authenticated

USE_PATH = Path("/run/gpuspawner/use")
MAX_BYTES = 4096
VALID_SECONDS = 180.0
"""The broker writes the file again after a minute at the latest: an older one says nothing about now."""


def use_now(path: Path = USE_PATH) -> bytes:
    """JSON: the broker's document; `null` if this server has no GPU; `{}` if its use is not known now."""
    if not path.parent.is_dir():
        return b"null"
    try:
        if time.time() - os.stat(path).st_mtime > VALID_SECONDS:
            return b"{}"
        with path.open("rb") as file:
            return file.read(MAX_BYTES)
    except OSError:
        return b"{}"


class UseHandler(JupyterHandler):
    """`GET gpuspawner/use`. It does not count as activity: a page that is only open keeps no server alive."""

    @authenticated
    def get(self) -> None:
        """Answers with the use of the GPU."""
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        self.finish(use_now())


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "gpuspawner_status"}]


def _load_jupyter_server_extension(server: Any) -> None:
    """Called by Jupyter Server at its start."""
    address = url_path_join(server.web_app.settings["base_url"], "gpuspawner", "use")
    server.web_app.add_handlers(".*$", [(address, UseHandler)])
