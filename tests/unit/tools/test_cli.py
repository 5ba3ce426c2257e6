"""`gpuspawner doctor | status | broker` as typed."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.client_reqrep import ConnectionKey
from gpuspawner.core.errors import BrokerUnavailable
from gpuspawner.protocol.client import UNAVAILABLE
from gpuspawner.protocol.messages import document
from gpuspawner.protocol.public import VisibleStatus
from gpuspawner.tools import cli
from gpuspawner.tools.doctor import Facts, Finding, Level, unreachable
from rich.console import Console

DEVICE = {
    "free": False,
    "uuid": "GPU-facade00-0000-4000-8000-000000000000",
    "model": "H100 80GB",
    "index": 0,
    "node": "",
    "memory_bytes": 80 << 30,
    "compute_capability": "9.0",
    "pool": "whole",
    "mode": "whole",
    "healthy": True,
    "reason": "",
    "since": "2026-01-01T00:00:00Z",
    "guarantee": "none",
    "compute_guarantee": "none",
    "unguarded_reason": "",
    "used_bytes": None,
    "utilization_percent": None,
    "simulated": True,
    "lease_id": "0" * 32,
    "user": "ada",
    "server": "[red]train",
    "free_slices": None,
    "total_slices": None,
    "free_memory_bytes": None,
    "shares": [],
}
STATUS: dict[str, Any] = {
    "simulated": True,
    "fault": "",
    "devices": [
        DEVICE,
        {**DEVICE, "uuid": "MIG-1", "index": None, "user": None, "server": None, "since": None},
        {
            **DEVICE, "uuid": "GPU-2", "index": 2, "node": "b", "healthy": False, "reason": "It is lost",
            "server": "", "drained": True,
        },
    ],
    "leases": [
        {
            "id": "0" * 32,
            "user": "ada",
            "server": "[red]train",
            "hub": "hub",
            "tier": "gpu",
            "state": "running",
            "device_uuids": [DEVICE["uuid"], "GPU-2"],
            "memory_bytes": 80 << 30,
            "compute_percent": 100.0,
            "mode": "whole",
            "since": "2026-01-01T00:00:00Z",
            "notice": "Save your work",

            "unknown_to_hub": True,
        }
    ],
    "queue": [
        {"id": "1" * 32, "user": "bob", "server": "", "hub": "hub", "tier": "gpu", "position": 1,
         "since": "2026-01-01T00:00:00Z", "earliest_at": None, "latest_at": None}
    ],
    "ended": [],
    "disks": [],
    "machines": [],
}  # fmt: skip


def printed(show: Any, *args: Any) -> list[list[str]]:
    """What `show` prints on a wide terminal: the words of each line that are two spaces apart."""
    console = Console(width=240, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        show(*args, console)
    lines = [line.rstrip() for line in console.export_text().splitlines() if line.strip()]
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]


@contextmanager
def broker_on(path: Path, status: dict[str, Any]) -> Iterator[None]:
    """An HTTP server that answers `GET /status` on a unix socket, in a thread of its own."""
    ready, loop = threading.Event(), asyncio.new_event_loop()

    async def serve() -> web.AppRunner:
        async def answer(_: web.Request) -> web.Response:
            return web.json_response(status)

        app = web.Application()

        async def sessions(_: web.Request) -> web.Response:
            return web.json_response({"sessions": [], "problems": [], "timezone": "Asia/Tokyo"})

        app.router.add_get("/api/status", answer)
        app.router.add_get("/api/sessions", sessions)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, str(path)).start()
        ready.set()
        return runner

    def run() -> None:
        runner = loop.run_until_complete(serve())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait(10)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def test_status_as_tables_in_the_site_s_time_zone() -> None:
    since, head = "2026-01-01 09:00:00", "Since (Asia/Tokyo)"
    assert printed(cli.show_status, STATUS, "Asia/Tokyo") == [
        ["The GPUs are simulated: servers get leases, but compute on the CPU."],
        ["Devices"],
        ["GPU", "Model", "Memory", "State", head, "UUID"],
        ["0", "H100 80GB (simulated)", "80 GiB", "ada ([red]train)", since, DEVICE["uuid"]],
        ["–", "H100 80GB (simulated)", "80 GiB", "free", "MIG-1"],
        ["2 of b", "H100 80GB (simulated)", "80 GiB", "out of service ada", since, "GPU-2"],
        ["It is lost"],
        ["Leases"],
        ["User", "Server", "Tier", "State", head, "GPU", "Notice"],
        [
            "ada",
            "[red]train",
            "gpu",
            "running",
            since,
            "0, 2 of b",
            "not known to the hub: end it on the GPU page. Save your work",
        ],
        ["Waiting"],
        ["Place", "User", "Server", "Tier", head],
        ["1st", "bob", "gpu", since],
    ]


@pytest.mark.parametrize(
    ("holder", "shown"), [({}, "drained ada ([red]train)"), ({"user": None, "server": None}, "drained")]
)
def test_status_says_that_a_gpu_is_drained_whether_or_not_somebody_holds_it(
    holder: dict[str, Any], shown: str
) -> None:
    device = {**DEVICE, **holder, "drained": True}
    lines = printed(cli.show_status, {**STATUS, "devices": [device], "leases": [], "queue": []}, "UTC")
    assert lines[3][3] == shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b]0;owned\x07\x1b[2J", "\\x1b]0;owned\\x07\\x1b[2J"),
        ("\u202egnol", "\\u202egnol"),
        ("two\nlines", "two\\x0alines"),
        ("[link=file:///etc]x[/link]", "[link=file:///etc]x[/link]"),
    ],
)
def test_a_name_gives_the_terminal_no_orders(name: str, shown: str) -> None:
    device = {**DEVICE, "user": name, "server": "", "total_seats": None, "total_slices": None}
    lease = {**STATUS["leases"][0], "user": name, "server": name, "tier": name, "notice": name}
    place = {**STATUS["queue"][0], "user": name, "server": name, "tier": name}
    status = {**STATUS, "devices": [device], "leases": [lease], "queue": [place]}
    lines = printed(cli.show_status, status, "UTC")
    assert [line.count(shown) for line in lines if shown in line] == [1, 3, 3]  # device; lease; queue
    assert not [char for line in lines for text in line for char in text if not char.isprintable()]


@pytest.mark.parametrize(
    ("user", "lines"),
    [
        ("ada", ["ada ([red]train) is awake", "3 of 8 seats in turns free"]),
        (None, ["3 of 8 seats in turns free"]),
    ],
)
def test_of_a_gpu_in_turns_status_says_who_is_awake_and_how_many_seats_are_free(
    user: str | None, lines: list[str]
) -> None:
    device = {**DEVICE, "user": user, "free_seats": 3, "total_seats": 8, "mode": "turns"}
    text = printed(cli.show_status, {**STATUS, "devices": [device], "leases": [], "queue": []}, "UTC")
    cells = [cell for line in text[3:] for cell in line]
    assert [cell for cell in cells if "turns" in cell or "awake" in cell] == lines


def test_status_from_the_broker_s_socket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with broker_on(tmp_path / "broker.sock", STATUS):
        assert cli.main(["status", "--json", f"--GpuSite.state_dir={tmp_path}"]) == 0
        assert json.loads(capsys.readouterr().out) == document(
            VisibleStatus.model_validate_json(json.dumps(STATUS))
        )
        assert cli.main(["status", f"--GpuSite.state_dir={tmp_path}"]) == 0
        out = capsys.readouterr().out
        assert ("The GPUs are simulated" in out, out.count("Since (Asia/Tokyo)")) == (True, 3)


def test_status_without_a_broker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", f"--GpuSite.state_dir={tmp_path}"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"gpuspawner status: the broker isn't running: nothing answers on {tmp_path}/broker.sock "
        f"(config file: {Path('jupyterhub_config.py').absolute()}). If its state is in another folder, set "
        "GPUSPAWNER_STATE_DIR, or give the hub's config file with --config; `gpuspawner doctor` says more.\n"
    )


def test_what_keeps_us_from_the_broker_is_said() -> None:
    silent = BrokerUnavailable("It hangs")
    assert unreachable(silent, "/s", "") == (
        "the broker's answer on /s can't be read (no config file was found)"
    )
    forbidden = BrokerUnavailable(UNAVAILABLE)
    forbidden.__cause__ = aiohttp.ClientConnectorError(
        ConnectionKey("broker", 80, False, True, None, None, None), PermissionError(13, "denied")
    )
    assert unreachable(forbidden, "/s", "/c.py") == (
        "this user has no permission to open the broker's socket /s (config file: /c.py)"
    )


def test_the_state_of_make_hub_beside_the_config_file_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GPUSPAWNER_STATE_DIR", raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = tmp_path / "jupyterhub_config.py"
    config.write_text(
        "import os\nc.GpuSite.socket_path = os.environ.get('GPUSPAWNER_STATE_DIR', '') + '/s'\n"
    )

    def found(*more: str) -> tuple[str, str]:
        app = cli.Status()
        app.initialize(["--config", str(config), *more])
        settings = app.settings()
        assert settings.database_url == f"sqlite:///{settings.site.state_dir}/ledger.sqlite"
        return settings.site.state_dir, settings.site.socket_path

    state = tmp_path / ".state"
    state.mkdir()
    assert found() == ("/var/lib/gpuspawner", "/s")  # nothing in it
    (state / "ledger.sqlite").touch()
    assert found() == (str(state), f"{state}/s")
    assert "GPUSPAWNER_STATE_DIR" not in os.environ
    assert found("--GpuSite.state_dir=/from/line")[0] == "/from/line"
    # `make hub` has written down with what it was started; what it must not say is not read.
    config.write_text("import os\nc.GpuSite.socket_path = os.environ.get('GPUSPAWNER_NAME', '-')\n")
    assert found()[1] == "-"
    (state / "environment.json").write_text(
        '{"GPUSPAWNER_NAME": "course", "PATH": "/x", "GPUSPAWNER_PORT": 5}'
    )
    path = os.environ["PATH"]
    assert (found()[1], os.environ["PATH"]) == ("course", path)
    monkeypatch.setenv("GPUSPAWNER_NAME", "mine")
    assert found()[1] == "mine"
    monkeypatch.delenv("GPUSPAWNER_NAME")
    (state / "environment.json").write_text("[")
    assert found()[1] == "-"
    config.write_text("import os\nc.GpuSite.socket_path = os.environ['GPUSPAWNER_STATE_DIR'] + '/s'\n")
    monkeypatch.setenv("GPUSPAWNER_STATE_DIR", "/from/environment")
    assert found() == ("/from/environment", "/from/environment/s")


def test_a_pipe_gets_whole_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with broker_on(tmp_path / "broker.sock", STATUS):
        assert cli.main(["status", f"--GpuSite.state_dir={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert [out.count(device["uuid"]) for device in STATUS["devices"]] == [1, 1, 1]


@pytest.mark.parametrize("command", ["status", "doctor"])
def test_help_lists_json(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([command, "--help"])
    assert not exit_.value.code
    out = capsys.readouterr().out
    assert ("--json" in out, "--all\n" in out) == (True, command == "doctor")


def test_doctor_is_brief_on_a_simulated_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "collect", lambda settings: Facts(simulated=True))
    monkeypatch.setattr(cli, "examine", lambda facts: FINDINGS[:2])
    assert cli.main(["doctor"]) == 0
    assert "not needed for simulated GPUs: MPS (--all shows them)" in capsys.readouterr().out
    assert cli.main(["doctor", "--all"]) == 0
    assert "→ Install it" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["status", "doctor"])
@pytest.mark.parametrize(
    ("tiers", "sentence"),
    [
        ([], "c.GpuSite.tiers is empty: give at least one tier, or remove the setting to use the default"),
        ([{"name": "t", "image": "Foo/Bar:x:y"}], "image is 'Foo/Bar:x:y': it is not the name of an image"),
    ],
)
def test_a_bad_config_file_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, tiers: Any, sentence: str
) -> None:
    config = tmp_path / "config.py"
    config.write_text(f"c.GpuSite.tiers = {tiers!r}\n")
    assert cli.main([command, "--config", str(config)]) == 1
    said = " ".join("".join(capsys.readouterr()).split())
    assert sentence in said
    assert "Traceback" not in said


def test_doctor_names_the_line_of_a_quota_that_cannot_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.py").write_text("c.GpuSite.quotas = [\n    {'group': 'a', 'devices': -1},\n]\n")
    assert cli.main(["doctor", "--config", str(tmp_path / "config.py")]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert f"{tmp_path}/config.py:2: c.GpuSite.quotas, entry 1 (group:a): devices is -1" in said


def test_the_config_file_of_the_present_folder_is_taken_and_the_command_line_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jupyterhub_config.py").write_text(
        "c.GpuSite.queue_timeout = 7\nc.GpuSite.state_dir = '/from/file'\n"
    )
    app = cli.Status()
    app.initialize(["--GpuSite.state_dir=/from/line"])
    site = app.settings().site
    assert (site.queue_timeout, site.state_dir) == (7.0, "/from/line")


FINDINGS = (
    Finding(Level.OK, "Docker", "Engine [28]"),
    Finding(Level.NOTE, "MPS", "not found", "Install it"),
    Finding(Level.PROBLEM, "Image x", "is not here", "Build it"),
)


def test_findings_as_a_table() -> None:
    body = [
        ["ok", "Docker", "Engine [28]"],
        ["note", "MPS", "not found"],
        ["→ Install it"],
        ["problem", "Image x", "is not here"],
        ["→ Build it"],
    ]
    assert printed(cli.show_findings, FINDINGS, False) == [
        *body,
        ["Servers with a GPU can't run here yet: see each problem above."],
    ]
    assert printed(cli.show_findings, FINDINGS[:2], True) == [
        *body[:3],
        ["Servers with a simulated GPU can run here."],
    ]


def test_doctor_s_json_and_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "collect", lambda settings: Facts(simulated=True))
    for findings, status in ((FINDINGS, 1), (FINDINGS[:2], 0)):
        monkeypatch.setattr(cli, "examine", lambda facts, found=findings: found)
        assert cli.main(["doctor", "--json"]) == status
        assert json.loads(capsys.readouterr().out) == {
            "simulated": True,
            "findings": [
                {"level": each.level.value, "subject": each.subject, "text": each.text, "remedy": each.remedy}
                for each in findings
            ],
        }


def test_broker_gets_its_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def main(argv: list[str]) -> int:
        seen.append(argv)
        return 3

    monkeypatch.setattr(cli.broker_app, "main", main)
    assert cli.main(["broker", "--config", "x.py", "--take-over"]) == 3
    assert seen == [["--config", "x.py", "--take-over"]]


def test_without_a_command_it_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Gives every notebook user of a JupyterHub on plain Docker a GPU of their own")
    assert [line for line in out.splitlines() if line in ("doctor", "status", "broker")] == [
        "doctor",
        "status",
        "broker",
    ]


def test_a_command_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bogus"]) == 2
    assert capsys.readouterr().err == (
        "gpuspawner: there is no command 'bogus': use doctor, status, quota, report, session, audit, "
        "timeline, guard, images, homes, plan, translate-profiles, node, broker\n"
    )


class Volumes:
    """Docker with one home, in place of the hub's way to Docker."""

    def __init__(self, client_kwargs: Any, tls_config: Any) -> None:
        pass

    def call_here(self, method: str, *args: Any, **kwargs: Any) -> Any:
        names = ("gpuspawner-home-ada", "gpuspawner-home-a-20b")
        homes = [{"Name": name, "UsageData": {"Size": 5 << 20, "RefCount": 0}} for name in names]
        return {"Volumes": homes} if method in ("df", "volumes") else None


def test_homes_where_none_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "DockerEngine", Volumes)
    config = tmp_path / "config.py"
    config.write_text('c.GpuDockerSpawner.prefix = "course"\n')
    said = "gpuspawner homes: Docker has no home of the hub 'course'"
    for arguments, status, out in ((["--json"], 0, "[]\n"), ([], 0, ""), (["remove", "ada"], 1, "")):
        assert cli.main(["homes", *arguments, "--config", str(config)]) == status
        shown = capsys.readouterr()
        assert (shown.out, shown.err.startswith(said), "'gpuspawner'" in shown.err) == (out, True, True)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["homes", "--json"], 0, '"user": "ada"'),
        (["homes", "--json"], 0, '"login": "a b"'),
        (["homes"], 0, "a b (a-20b)"),
        (["homes", "remove", "ada"], 1, "would remove gpuspawner-home-ada (5.0 MiB): add --yes to do it"),
        (["homes", "remove", "ada", "--yes"], 0, "removed gpuspawner-home-ada"),
        (["homes", "remove", "ben"], 1, "'ben' has no home here"),
        (["homes", "archive", "ada", "--to=/none"], 1, "no image is set"),
        (["homes", "retire", "ada", "--to=/none"], 1, "no image is set"),
        (["homes", "remove"], 1, "use `list`, `archive USER …`, `remove USER …` or"),
    ],
)
def test_homes(
    arguments: list[str],
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "DockerEngine", Volumes)
    assert cli.main(arguments) == status
    shown = capsys.readouterr()
    assert said in shown.out + shown.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["status", "--jsn"], "gpuspawner status: there is no option --jsn: did you mean --json?\n"),
        (["session", "list", "--qqq=1"], "gpuspawner session: there is no option --qqq: see --help\n"),
    ],
)
def test_an_option_that_is_not_there(
    capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert (ended.value.code, capsys.readouterr().err) == (2, sentence)


def test_devices_to_plan_with_that_cannot_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--devices", "foo"]) == 2
    assert "--devices: 'foo' can't be read" in capsys.readouterr().err
