"""images/base.py: the base image comes from this machine's own apt settings, and from no address of ours."""

from __future__ import annotations

import subprocess
import tarfile

import pytest

from images import base, debs
from images.engine import _plain
from setup.steps import ROOT

TARGETS = """\
Debian|http://mirror.invalid/debian/|bookworm|main|/usr/share/keyrings/debian-archive-keyring.gpg|Packages
Debian|http://mirror.invalid/debian/|bookworm|main|/usr/share/keyrings/debian-archive-keyring.gpg|Translations
Debian|http://mirror.invalid/security/|bookworm-security|main||Packages
Somebody|https://elsewhere.invalid/apt|nodistro|main||Packages
"""


def answer(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    done = subprocess.CompletedProcess([], 0, text, "")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: done)


def test_sources_are_the_distributions_own(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, TARGETS)
    signed = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    assert base.apt_sources() == [
        f"deb {signed} http://mirror.invalid/debian/ bookworm main",
        "deb http://mirror.invalid/security/ bookworm-security main",
    ]


def test_settings_that_are_set_go_along(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, 'Acquire::http::Proxy "http://p.invalid:1";\nAcquire::https::Proxy "";\n')
    assert debs.apt_settings() == ['Acquire::http::Proxy "http://p.invalid:1";']


def test_nothing_that_builds_names_an_address() -> None:
    for folder in (ROOT / "setup", ROOT / "images"):
        for path in folder.rglob("*"):
            if path.suffix in {".py", ".sh", ".toml", ".lock", ".in"} or path.name == "Dockerfile":
                if path.is_relative_to(ROOT / "images" / "notebooks"):
                    continue
                found = [line for line in path.read_text().splitlines() if "://" in line]
                assert all("127.0.0.1" in line or "{" in line for line in found), f"{path}: {found}"


def test_the_context_is_the_same_on_every_machine() -> None:
    member = tarfile.TarInfo("folder/start-lab")
    member.mode, member.uid, member.uname, member.mtime = 0o764, 1234, "somebody", 99
    plain = _plain(member)
    assert plain is not None
    assert (plain.mode, plain.uid, plain.uname, plain.mtime) == (0o755, 0, "", 0)
    assert _plain(tarfile.TarInfo("notebooks/__pycache__/x.pyc")) is None
