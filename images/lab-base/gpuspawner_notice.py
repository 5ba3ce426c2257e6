"""Tells the person at the notebook what happened to their GPU.

The broker writes a sentence to `/run/gpuspawner/notice` when a lease's device is lost, withdrawn or
back. After each cell this IPython extension looks whether that file changed (one `stat`) and shows it.
"""

from __future__ import annotations

import html
import os
from pathlib import Path
from typing import Any

NOTICE_PATH = Path("/run/gpuspawner/notice")
MAX_BYTES = 4096


class Notice:
    """Shows the notice once for each time that it changed."""

    def __init__(self, path: Path = NOTICE_PATH) -> None:
        self._path = path
        self._shown: tuple[int, int, int] | None = None

    def unseen(self) -> str | None:
        """The notice if it changed since it was last asked for, else None."""
        try:
            stat = os.stat(self._path)
        except OSError:
            self._shown = None
            return None
        version = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if version == self._shown:
            return None
        try:
            with self._path.open("rb") as file:
                text = file.read(MAX_BYTES).decode("utf-8", "replace").strip()
        except OSError:
            return None
        self._shown = version
        return text or None

    def after_cell(self, result: object = None) -> None:
        """Publishes an unseen notice below the cell that just ran."""
        text = self.unseen()
        if text is None:
            return
        from IPython.display import publish_display_data

        style = "border-left:4px solid #d9822b;padding:.5em .8em;margin:.4em 0"
        publish_display_data(
            {
                "text/plain": f"[GPU] {text}",
                "text/html": f'<div role="alert" style="{style}"><b>GPU</b> {html.escape(text)}</div>',
            }
        )


def load_ipython_extension(shell: Any) -> None:
    """Called by IPython at the kernel's start: a notice is looked for after each cell."""
    shell.events.register("post_run_cell", Notice().after_cell)
