"""The settings of docs/plug-in.md load beside our own, in the hub and in the broker.

What they do is tried elsewhere with the real packages: tests/hub/test_plug_*.py, tests/images, tests/browser.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from gpuspawner.broker.app import GpuBroker

from tests.recipes import PAGE, adapted, blocks

ROOT = PAGE.parents[1]
HEADINGS = re.findall(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
SETTINGS = [(heading, text) for heading in HEADINGS for text in blocks(heading, "python")]


def test_there_are_recipes() -> None:
    assert [heading for heading, _ in SETTINGS] == [
        "A course image of your own",
        "Login from a learning platform (LTI 1.3)",
        "Login with OAuth, groups become quotas",
        "Prometheus",
        "Announcements",
        "Announcements",
        "Servers that nobody uses",
        "traefik",
    ]


@pytest.mark.parametrize(("heading", "text"), SETTINGS)
def test_settings_load_where_the_broker_reads_them(
    heading: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUSPAWNER_STATE_DIR", str(tmp_path))
    (tmp_path / "prometheus-token").write_text("0" * 64)
    used = {"/srv/": f"{tmp_path}/"} if "/srv/" in text else {}
    config = tmp_path / "config.py"
    config.write_text(f"load_subconfig({str(ROOT / 'jupyterhub_config.py')!r})\n{adapted(text, used)}")
    broker = GpuBroker()
    broker.initialize(["--config", str(config)])
    assert ("c.GpuSite.quotas" in text) == bool(broker.quotas)
    assert ("c.GpuSite.tiers" in text) == (broker.tiers[-1].image == "ourcourse/lab:2026-11")


def test_the_link_is_what_the_code_beside_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("A link that opens a repository", "py")
    exec(code, {})
    printed = capsys.readouterr().out.strip()
    assert f"    {printed}\n" in PAGE.read_text(encoding="utf-8")
    query = parse_qs(urlsplit(printed).query)
    assert query["opt-profile"] == ["gpu"]
    (pull,) = query["next"]
    assert pull.startswith("/hub/user-redirect/git-pull?")
    assert parse_qs(urlsplit(pull).query) == {
        "repo": ["https://github.com/ines/course"],
        "branch": ["main"],
    }
    assert unquote(pull).endswith("repo=https://github.com/ines/course&branch=main")


def test_prometheus_reads_its_part() -> None:
    (text,) = blocks("Prometheus", "yaml")
    paths = {job["job_name"]: job["metrics_path"] for job in yaml.safe_load(text)["scrape_configs"]}
    assert paths == {"hub": "/hub/metrics", "gpus": "/services/gpu/metrics"}
