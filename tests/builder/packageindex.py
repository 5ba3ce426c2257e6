"""A package index on 127.0.0.1, with packages made up on the spot."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

BACKEND = """
import zipfile
NAME, VERSION = {name!r}, {version!r}
FILE = NAME.replace("-", "_")
INFO = f"{{FILE}}-{{VERSION}}.dist-info/"
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    import os
    os.makedirs(f"{{folder}}/{{INFO}}", exist_ok=True)
    with open(f"{{folder}}/{{INFO}}METADATA", "w") as file:
        file.write(f"Metadata-Version: 2.1\\nName: {{NAME}}\\nVersion: {{VERSION}}\\n")
    return INFO.rstrip("/")
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = f"{{FILE}}-{{VERSION}}-py3-none-any.whl"
    with zipfile.ZipFile(f"{{folder}}/{{name}}", "w") as wheel:
        wheel.writestr(f"{{FILE}}.py", "MADE_FROM = 'source'\\n")
        wheel.writestr(INFO + "METADATA", f"Metadata-Version: 2.1\\nName: {{NAME}}\\nVersion: {{VERSION}}\\n")
        tags = "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr(INFO + "WHEEL", tags)
        wheel.writestr(INFO + "RECORD", f"{{FILE}}.py,,\\n")
    return name
"""


def add_wheel(index: Path, name: str, version: str) -> None:
    """Puts an empty pure wheel into the index; its module is named after it."""
    file = name.replace("-", "_")
    info = f"{file}-{version}.dist-info/"
    with zipfile.ZipFile(_folder(index, name) / f"{file}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{file}.py", "MADE_FROM = 'wheel'\n")
        wheel.writestr(info + "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(info + "WHEEL", tags)
        wheel.writestr(info + "RECORD", f"{file}.py,,\n")


def add_source(index: Path, name: str, version: str) -> None:
    """Puts a source package into the index that builds itself, with a backend of its own."""
    file = name.replace("-", "_")
    root = f"{file}-{version}"
    project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    files = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "pyproject.toml": project,
        "backend.py": BACKEND.format(name=name, version=version),
    }
    with tarfile.open(_folder(index, name) / f"{root}.tar.gz", "w:gz") as tar:
        for path, content in files.items():
            member = tarfile.TarInfo(f"{root}/{path}")
            member.size = len(content.encode())
            tar.addfile(member, io.BytesIO(content.encode()))


@contextlib.contextmanager
def served(index: Path) -> Iterator[str]:
    """Serves the index while the block runs; yields its address."""
    handler = functools.partial(_Quiet, directory=str(index))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def _folder(index: Path, name: str) -> Path:
    folder = index / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
