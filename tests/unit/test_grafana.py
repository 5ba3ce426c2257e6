"""Dashboard and alert rules ask for what broker and hub really serve, and a real Prometheus answers."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from gpuspawner.core.disk import FULL_BYTES, LOW_BYTES, LOW_FRACTION
from gpuspawner.core.errors import all_refusals

from tests.hubstart import free_ports
from tests.unit.served_metrics import Series, broker_text, hub_text, series

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "grafana"
PROMTOOL = ROOT / ".cache" / "prometheus" / "bin" / "promtool"

# What isn't a metric in an expression.
_WORDS = {"by", "and", "or", "on", "unless", "without", "ignoring", "bool"}
_SELECTOR = re.compile(r"([a-z_]\w*)\s*(?:\{([^}]*)\})?", re.IGNORECASE)
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_SCRAPED = {"up": {"job": {"hub", "gpus"}}}
"""What Prometheus itself records about its jobs; their names are those of docs/plug-in.md."""


def dashboard() -> dict[str, Any]:
    return dict(json.loads((FOLDER / "dashboard.json").read_text()))


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return list(group["rules"])


def expressions() -> list[str]:
    asked = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [*asked, *(rule["expr"] for rule in rules())]


def faults(expression: str, known: Series) -> Iterator[str]:
    """What the expression asks for that isn't served: names, labels, values."""
    grouped = {name.strip() for found in _GROUPING.findall(expression) for name in found.split(",")}
    bare = re.sub(r"\[[^\]]*\]", "", _GROUPING.sub("", expression))
    labels: set[str] = set()
    for found in _SELECTOR.finditer(bare):
        name, matchers = found.groups()
        if name in _WORDS or bare[found.end() :].lstrip().startswith("("):
            continue
        if name not in known:
            yield f"{name} is not served"
            continue
        labels |= known[name].keys()
        for label, operator, value in _MATCHER.findall(matchers or ""):
            there = known[name].get(label)
            if there is None:
                yield f"{name} has no label {label}"
            elif operator == "=" and value not in there:
                yield f"{name} has no {label} {value}"
    yield from (f"no label {label} to group by" for label in sorted(grouped - labels))


@pytest.mark.parametrize("expression", expressions())
def test_every_expression_asks_for_what_is_served(expression: str) -> None:
    assert list(faults(expression, {**series(), **_SCRAPED})) == []


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("sum(gpuspawner_gpus)", ["gpuspawner_gpus is not served"]),
        ("rate(gpuspawner_refusals[5m]) > 0", ["gpuspawner_refusals is not served"]),
        ('gpuspawner_devices{health="ok"}', ["gpuspawner_devices has no label health"]),
        ('up{job="gpus"} or gpuspawner_devices{state="lost"}', ["gpuspawner_devices has no state lost"]),
        ("sum by (le, group) (gpuspawner_leases)", ["no label group to group by", "no label le to group by"]),
    ],
)
def test_a_wrong_name_is_found(expression: str, said: list[str]) -> None:
    assert list(faults(expression, {**series(), **_SCRAPED})) == said


def test_every_metric_of_ours_but_one_is_on_the_dashboard() -> None:
    asked = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    ours = {name for name in series() if name.startswith("gpuspawner_")}
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in ours if name in asked}
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in ours} - shown == {
        "gpuspawner_reconcile_steps_total"  # everyday work
    }


def test_the_legends_name_labels_that_remain() -> None:
    for panel in panels():
        for target in panel["targets"]:
            kept = {each.strip() for found in _GROUPING.findall(target["expr"]) for each in found.split(",")}
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert named <= kept | {"holds"}, target


def test_the_panels_are_complete_and_lie_beside_each_other() -> None:
    taken: dict[tuple[int, int], int] = {}
    everything = dashboard()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    for panel in everything:
        place = panel["gridPos"]
        cells = [(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])]
        assert place["x"] + place["w"] <= 24, panel["title"]
        assert not taken.keys() & set(cells), panel["title"]
        taken.update(dict.fromkeys(cells, panel["id"]))
    for panel in panels():
        assert "" not in (panel["description"], panel["fieldConfig"]["defaults"]["unit"]), panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"


def test_the_rules_have_the_limits_of_the_code() -> None:
    by_name = {rule["alert"]: rule["expr"] for rule in rules()}
    assert (
        by_name["DiskLow"].split()
        == (
            f"gpuspawner_disk_free_bytes < {LOW_BYTES} and gpuspawner_disk_free_bytes < {LOW_FRACTION} * "
            "gpuspawner_disk_total_bytes"
        ).split()
    )
    assert by_name["DiskFull"] == f"gpuspawner_disk_free_bytes < {FULL_BYTES}"
    (pattern,) = re.findall(r'reason!~"([^"]+)"', by_name["ServersDoNotStart"])
    counted = {reason for reason in all_refusals() if not re.fullmatch(pattern, reason)}
    assert counted == {"broker_unavailable", "quota_unreadable"}


def test_every_rule_says_how_bad_it_is_and_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]


def promtool(*words: str) -> str:
    """Runs promtool in the folder of the rules; returns what it says."""
    if not PROMTOOL.exists():
        pytest.skip("no promtool here: `make test` or setup/prometheus.sh fetches Debian's")
    done = subprocess.run([PROMTOOL, *words], cwd=FOLDER, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_rules() -> None:
    assert f"SUCCESS: {len(rules())} rules found" in promtool("check", "rules", "alerts.yml")


def test_the_rules_fire_when_they_should_and_not_on_a_quiet_day() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")
    tested = (FOLDER / "alerts_test.yml").read_text()
    assert [rule["alert"] for rule in rules() if f'alertname="{rule["alert"]}"' not in tested] == []


def test_promtool_accepts_the_dashboard_s_expressions(tmp_path: Path) -> None:
    asked = [
        target["expr"].replace("$__rate_interval", "5m") for panel in panels() for target in panel["targets"]
    ]
    recorded = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(asked)]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    assert f"SUCCESS: {len(asked)} rules found" in promtool("check", "rules", str(path))


class Served(BaseHTTPRequestHandler):
    """Hub and broker, as Prometheus sees them."""

    def do_GET(self) -> None:
        """Answers with the metrics of the one or the other."""
        text = {"/hub/metrics": hub_text, "/services/gpu/metrics": broker_text}[self.path]().encode()
        self.send_response(200 if self.headers["Authorization"] == "token secret" else 403)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def scraped(tmp_path: Path) -> Iterator[str]:
    """The address of a real Prometheus with the jobs of docs/plug-in.md and the rules."""
    program = PROMTOOL.parent / "prometheus"
    if not program.exists():
        pytest.skip("no Prometheus here: `make test` or setup/prometheus.sh fetches Debian's")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Served)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    section = (ROOT / "docs" / "plug-in.md").read_text().partition("\n## Prometheus\n")[2]
    jobs = section.partition("```yaml\n")[2].partition("```")[0]
    jobs = jobs.replace("127.0.0.1:8000", f"127.0.0.1:{server.server_port}")
    (tmp_path / "token").write_text("secret")
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        f"rule_files: [{FOLDER}/alerts.yml]\n" + jobs.replace("/srv/prometheus-token", f"{tmp_path}/token")
    )
    address = f"127.0.0.1:{free_ports(1)}"
    command = [
        program, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address={address}",
    ]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield address
        finally:
            process.terminate()
            process.wait(timeout=20)
            server.shutdown()
            server.server_close()


def ask(address: str, path: str, **query: str) -> Any:
    """The data of an answer of Prometheus' API."""
    with urlopen(f"http://{address}/api/v1/{path}?{urlencode(query)}", timeout=10) as answer:
        document = json.load(answer)
    assert document["status"] == "success", document
    return document["data"]


def wait_until_scraped(address: str) -> None:
    """Returns when both jobs were read twice and each rule was evaluated."""
    deadline = time.monotonic() + 40
    while True:
        with suppress(OSError):
            twice = ask(address, "query", query="count_over_time(up[1m]) > 2 and up == 1")["result"]
            (group,) = ask(address, "rules")["groups"]
            if len(twice) == 2 and all(rule["health"] == "ok" for rule in group["rules"]):
                return
        assert time.monotonic() < deadline, "Prometheus does not read hub and broker"
        time.sleep(0.2)


def test_a_real_prometheus_reads_both_and_answers_each_panel(scraped: str) -> None:
    wait_until_scraped(scraped)
    empty = []
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "1m").removesuffix(" > 0")
            if not ask(scraped, "query", query=expression)["result"]:
                empty.append(expression)
    assert empty == []
    active = {alert["labels"]["alertname"] for alert in ask(scraped, "alerts")["alerts"]}
    assert active == {"GpuDockerUnreadable", "GpuMachineLost"}  # it never saw Docker, nor one of its machines
