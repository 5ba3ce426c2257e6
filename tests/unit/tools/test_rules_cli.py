"""`gpuspawner quota | report | session` as typed, against a real socket, allocator and ledger."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.core.decision import DecisionKind
from gpuspawner.core.model import GpuRequest
from gpuspawner.core.states import Actor
from gpuspawner.core.want import Want
from gpuspawner.tools import cli
from gpuspawner.tools.rules_cli import as_typed

from tests.unit.rules_bench import CONFIG, Served


@pytest.fixture
def served(tmp_path: Path, times: Any) -> Iterator[Served]:
    times.wall = times.wall.replace(year=2026, month=11, day=26)  # a Thursday
    broker = Served(tmp_path, times)
    broker.start()
    yield broker
    broker.stop()


Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(served: Served, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Types a command; exit status, what it printed, and what it complained of."""

    def run(*words: str) -> tuple[int, str, str]:
        status = cli.main([*words, "--config", str(served.config)])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def lines(text: str) -> list[list[str]]:
    """The cells of a printed table."""
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]
    return [row for row in rows if row]


def test_running_servers_beyond_a_quota_end_if_that_is_said(served: Served, typed: Typed) -> None:
    """Each of two servers has a GPU; the second one's user is told."""

    async def start(number: int) -> None:
        request = GpuRequest(f"{number:032x}", "hub", "ada", f"s{number}", "gpu", Want(1), ())
        await served.allocator.acquire(request)
        await served.allocator.set_running(request.lease_id, f"c{number}")

    async def end() -> list[str]:
        await served.endings.round()
        ends = [served.endings.deadline_of(f"{number:032x}") for number in (1, 2)]
        return [each.cause.value if each else "" for each in ends]

    for number in (1, 2):
        served.do(start(number))
    assert typed("quota", "set", "user:ada", "devices=1")[0] == 0
    assert served.do(end()) == ["", ""]
    assert typed("quota", "set", "user:ada", "devices=1", "--end-servers", "--reason", "a class") == (
        0,
        "Set: user:ada may have devices=1; running servers beyond it are warned, and end in 15 minutes\n",
        "",
    )
    assert served.do(end()) == ["", "quota_changed"]
    (decision,) = served.rules.rulebook.history(DecisionKind.END)
    assert (decision.subject[-1], decision.document, decision.reason) == (
        "2",
        {"quota": "user:ada"},
        "a class",
    )


def test_quotas_are_set_shown_and_removed(typed: Typed) -> None:
    assert typed("quota", "set", "group:students", "devices=2", "gpu_hours=10", "--reason", "exam week") == (
        0,
        "Set: group:students may have devices=2, gpu_hours=10\n",
        "",
    )
    assert typed("quota", "set", "user:ada", "tiers=cpu") == (0, "Set: user:ada may have tiers=cpu\n", "")
    status, out, _ = typed("quota", "show")
    assert status == 0
    me = getpass.getuser()
    assert lines(out) == [
        ["Quotas"],
        ["For", "Limits", "Changed at run time"],
        [
            "group:students",
            "devices=2, gpu_hours=10, period=week, timezone=Europe/Berlin",
            "devices=2, gpu_hours=10",
        ],
        ["user:ada", "tiers=cpu", "tiers=cpu"],
        ["Changes"],
        ["When (Europe/Berlin)", "For", "What", "By", "Why"],
        ["2026-11-26 13:00", "group:students", "devices=2, gpu_hours=10", me, "exam week"],
        ["2026-11-26 13:00", "user:ada", "tiers=cpu", me],
    ]
    assert typed("quota", "remove", "group:students") == (
        0,
        "Removed: for group:students, what c.GpuSite.quotas and the hub's groups say applies again\n",
        "",
    )
    shown = json.loads(typed("quota", "show", "group:students", "--json")[1])
    assert shown["quotas"] == [
        {"subject": "group:students", "limits": {"devices": 1}, "settings": {"devices": 1}, "changed": {}}
    ]
    assert [item["document"] for item in shown["history"]] == [
        {"devices": 2, "gpu_hours": 10},
        {"devices": None, "gpu_hours": None},
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["set", "group:students", "devices=-1"], "The quota of group:students: devices is -1: give a whole"),
        (["set", "group:students", "device=1"], "There is no key 'device': use devices"),
        (["set", "group:students", "devices"], "'devices' is not KEY=VALUE: write it like devices=2."),
        (["set", "students", "devices=1"], 'A quota is for "everybody", "group:NAME" or "user:NAME"'),
        (["set", "user:ada", "period=day"], "period belongs to gpu_hours, which is missing"),
        (["remove", "user:eve"], "Nothing was changed for user:eve at run time."),
        (["grant", "user:ada", "5"], "A grant needs a reason"),
        (["grant", "user:ada"], "use:\n  gpuspawner quota show [WHO]"),
        (["grant", "user:ada", "five"], "'five' is no number of GPU-hours: write it like 5 or -2.5."),
        (["grant", "user:ada", "0", "--reason", "x"], "A grant of 0 GPU-hours changes nothing"),
        (["set", "user:ada", "devices=1", "--reason", "x" * 256], "A reason is text of up to 255"),
        (["remove", "user:ada", "--reason", "a\x1b[31m"], "A reason is text of up to 255 printable"),
    ],
)
def test_what_cannot_be_used_is_a_sentence(typed: Typed, words: list[str], sentence: str) -> None:
    status, out, err = typed("quota", *words)
    assert (status, out) == (1, "")
    assert sentence in err
    assert err.startswith("gpuspawner quota: ")
    assert "or remove it" not in err  # nothing was recorded


@pytest.mark.parametrize("length", [250, 255])
def test_the_longest_name_of_a_group_gets_a_quota(typed: Typed, length: int) -> None:
    group = "group:" + "g" * length
    assert typed("quota", "set", group, "devices=2")[::2] == (0, "")
    assert typed("quota", "grant", group, "5", "--reason", "exam")[::2] == (0, "")
    shown = json.loads(typed("quota", "show", group, "--json")[1])["quotas"]
    assert [each["changed"] for each in shown] == [{"devices": 2}]
    assert typed("quota", "remove", group)[::2] == (0, "")
    status, _, err = typed("quota", "set", group + "g" * 10, "devices=2")
    assert (status, "A quota is for" in err) == (1, True)


def test_a_verb_that_is_not_there(typed: Typed) -> None:
    for command in ("quota", "session"):
        status, _, err = typed(command, "frobnicate")
        assert (status, err.startswith(f"gpuspawner {command}: use:\n  gpuspawner {command} ")) == (2, True)
        assert max(map(len, err.splitlines())) <= 80


def test_without_a_broker_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(socket=str(tmp_path / "none.sock")))
    assert cli.main(["report", "--config", str(config)]) == 1
    assert capsys.readouterr().err.startswith("gpuspawner report: ")


def use(served: Served, times: Any, user: str, hours: float, number: int) -> None:
    """A lease that runs so long."""
    request = GpuRequest(f"{number:032x}", "hub", user, "", "gpu", Want(1), ("students",))
    served.do(served.allocator.acquire(request))
    served.do(served.allocator.set_running(request.lease_id, "c"))
    times.pass_seconds(hours * 3600)
    served.do(served.allocator.begin_release(request.lease_id, "stopped", by=Actor.HUB))
    served.do(served.allocator.close(request.lease_id))


def test_reports_as_table_csv_and_json(served: Served, typed: Typed, times: Any) -> None:
    use(served, times, "ada", 1.5, 1)
    use(served, times, "bob", 14, 2)
    times.pass_seconds(60)
    assert lines(typed("report")[1]) == [
        ["From 2026-10-28 04:31 to 2026-11-27 04:31 (Europe/Berlin)"],
        ["GPU-hours"],
        ["user", "GPU-hours", "Users", "Servers"],
        ["bob", "14.000", "1", "1"],
        ["ada", "1.500", "1", "1"],
        ["total", "15.500", "2", "2"],
    ]
    assert typed("report", "--by=tier", "--csv")[1] == "tier,gpu_hours,users,leases\ngpu,15.500,2,2\n"
    day = json.loads(typed("report", "--by=day", "--start=2026-11-27", "--end=2026-11-27", "--json")[1])
    assert (day["start"], day["end"], day["timezone"]) == (
        "2026-11-26T23:00:00Z", "2026-11-27T23:00:00Z", "Europe/Berlin",
    )  # fmt: skip
    assert day["lines"] == [
        {"name": "2026-11-27", "gpu_seconds": 4.5 * 3600, "lease_count": 1, "user_count": 1}
    ]
    assert "A report is grouped by one of user, group, tier, day, node" in typed("report", "--by=color")[2]
    assert "'soon' is no date" in typed("report", "--start=soon")[2]
    assert "is not before its end" in typed("report", "--start=2027-02-01", "--end=2027-01-01")[2]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ('=HYPERLINK("http://x")', '"\'=HYPERLINK(""http://x"")"'),
        ("-ada", "'-ada"),
        ("+49", "'+49"),
        ("@ada", "'@ada"),
        ("a,b", '"a,b"'),
        ("\x1b[31m\u202ed", "\\x1b[31m\\u202ed"),
    ],
)
def test_a_report_s_names_are_only_text(
    served: Served, typed: Typed, times: Any, name: str, shown: str
) -> None:
    use(served, times, name, 1, 1)
    times.pass_seconds(60)
    assert typed("report", "--csv")[1] == f"user,gpu_hours,users,leases\n{shown},1.000,1,1\n"
    assert {char for char in typed("report")[1] if not char.isprintable()} == {"\n"}
    assert json.loads(typed("report", "--json")[1])["lines"][0]["name"] == name


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "[red]a", "a/../b", "x" * 100, "שלום"])
def test_a_group_s_name_is_only_text(typed: Typed, name: str) -> None:
    assert typed("quota", "set", f"group:{name}", "devices=2") == (
        0, f"Set: group:{name} may have devices=2\n", "",
    )  # fmt: skip
    first, second = typed("quota", "show", f"group:{name}")[1].split("Changes")
    for table in (first, second):  # the quota and its change
        assert f"group:{name}" in "".join(table.split())
    shown = json.loads(typed("quota", "show", f"group:{name}", "--json")[1])
    assert shown["quotas"][0]["subject"] == f"group:{name}"


@pytest.mark.parametrize("name", ["\x1b[31ma", "\u202ednuor", "a\nb", "a\u200db", "x" * 256])
def test_a_group_that_no_quota_can_name_is_a_sentence(typed: Typed, name: str) -> None:
    status, out, err = typed("quota", "set", f"group:{name}", "devices=2")
    assert (status, out) == (1, "")
    assert err.startswith("gpuspawner quota: ")
    assert {char for char in err if not char.isprintable()} == {"\n"}


def test_lab_sessions_are_added_changed_and_cancelled(typed: Typed, tmp_path: Path) -> None:
    lab = ("session", "add", "cs231n", "group=students", "tier=gpu", "seats=2", "when=Mondays 10-12")
    status, out, err = typed(*lab, "from=2026-11-26", "until=2026-12-18", "prestart=15")
    assert (status, err) == (0, "")
    assert lines(out)[2] == [
        "cs231n", "students", "2 x gpu", "Mondays 10:00–12:00 (Europe/Berlin) until 2026-12-18",
        "2026-11-30 10:00, 2026-12-07 10:00, 2026-12-14 10:00",
    ]  # fmt: skip
    assert "There is a lab session 'cs231n' already" in typed(*lab)[2]
    other = ("session", "add", "ml", "group=phd", "tier=gpu", "when=Mondays 11-13", "from=2026-11-26")
    assert "and beside 'cs231n' none fits" in typed(*other, "seats=1")[2]
    assert typed("session", "change", "cs231n", "seats=1", "move=2026-12-07:2026-12-08 14-16")[0] == 0
    assert typed(*other, "seats=1")[0] == 0
    assert typed("session", "cancel", "cs231n", "2026-12-01") == (
        1,
        "",
        "gpuspawner session: cs231n doesn't meet on 2026-12-01: the nearest dates are 2026-11-30 "
        "and 2026-12-07.\n",
    )
    status, out, err = typed("session", "cancel", "cs231n", "2026-11-30")
    assert (status, err, lines(out)[-1]) == (0, "", ["Cancelled: cs231n doesn't meet on 2026-11-30"])
    assert lines(out)[1:3] == [
        ["Name", "Group", "Places", "When", "Next", "Cancelled"],
        [
            "cs231n", "students", "1 x gpu", "Mondays 10:00–12:00 (Europe/Berlin) until 2026-12-18",
            "2026-12-08 14:00, 2026-12-14 10:00", "2026-11-30",
        ],
    ]  # fmt: skip
    assert lines(typed("session", "list")[1])[2] == lines(out)[2]
    listed = json.loads(typed("session", "list", "--json")[1])["sessions"]
    assert [(each["session"]["name"], each["next"][0]["start"]) for each in listed] == [
        ("cs231n", "2026-12-08T13:00:00Z"),
        ("ml", "2026-11-30T10:00:00Z"),
    ]
    assert listed[0]["session"]["prestart_seconds"] == 900
    calendar = typed("session", "calendar")[1]
    assert "BEGIN:VCALENDAR" in calendar
    (tmp_path / "out.ics").write_text(calendar)
    cancelled = "Cancelled: the lab session cs231n doesn't meet any more\n"
    assert typed("session", "cancel", "cs231n") == (0, cancelled, "")
    assert "There is no lab session 'cs231n': there are 'ml'." in typed("session", "cancel", "cs231n")[2]
    assert typed("session", "import", str(tmp_path / "out.ics"))[0] == 0
    assert json.loads(typed("session", "list", "--json")[1])["sessions"] == listed


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["add", "a", "group=g", "tier=gpu", "seats=1"], "The lab session needs when="),
        (["add", "a", "group=g", "tier=gpu", "seats=1", "when=never"], "The time 'never' can't be read"),
        (
            ["add", "a", "group=g", "tier=gpu", "seats=x", "when=daily 9-10"],
            "seats is 'x': give a whole number.",
        ),
        (
            ["add", "a", "group=g", "tier=cpu", "seats=1", "when=daily 9-10"],
            "There is no tier with a GPU called",
        ),
        (["add", "a", "group=g", "tier=gpu", "seats=9", "when=daily 9-10"], "2 fit: ask for 2"),
        (["add", "a", "group=g", "tier=gpu", "seats=1", "when=daily 9-10", "colour=red"], "has no 'colour'"),
        (["change", "b", "seats=1"], "There is no lab session 'b': there are none."),
        (["import", "/nowhere.ics"], "The calendar /nowhere.ics can't be read"),
    ],
)
def test_what_a_session_cannot_be_is_a_sentence(typed: Typed, words: list[str], sentence: str) -> None:
    status, _, err = typed("session", *words)
    assert status == 1
    assert sentence in err


def test_grants_are_confirmed(typed: Typed) -> None:
    given = ("--reason", "the machine was down")
    assert typed("quota", "grant", "user:ada", "5", *given) == (
        0,
        "Granted: user:ada has 5 GPU-hours more in the present period\n",
        "",
    )
    assert typed("quota", "grant", "user:ada", "-1.5", *given)[1] == (
        "Granted: user:ada has 1.5 GPU-hours less in the present period\n"
    )
    assert typed("quota", "grant", "user:ada", "5", *given, "--json") == (0, "", "")
    assert typed("quota", "grant", "user:bob", "1", "--reason", "ill")[1] == (
        "Granted: user:bob has 1 GPU-hour more in the present period\n"
    )
    shown = lines(typed("quota", "show", "user:bob")[1])
    assert shown[-1][1:] == ["user:bob", "1 GPU-hour more", getpass.getuser(), "ill"]


def test_the_time_zone_is_the_broker_s(served: Served, typed: Typed) -> None:
    """A command without the site's settings has the zone of traitlets' default, UTC."""
    served.config.write_text(f"c.GpuSite.socket_path = {served.socket!r}\n")
    when = ("when=Mondays 10-12", "from=2026-11-26")
    status, out, _ = typed("session", "add", "a", "group=students", "tier=gpu", "seats=1", *when)
    assert (status, lines(out)[2][3]) == (0, "Mondays 10:00–12:00 (Europe/Berlin)")
    day = json.loads(typed("report", "--start=2026-11-26", "--end=2026-11-26", "--json")[1])
    assert (day["start"], day["end"], day["timezone"]) == (
        "2026-11-25T23:00:00Z", "2026-11-26T23:00:00Z", "Europe/Berlin",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        ('write "group": "students", or add it, like "x": {"users": []}',
         'write group:students, or add it, like "x": {"users": []}'),
        ('like "devices": 1, or "unlimited"', 'like devices=1, or "unlimited"'),
        ('write "tiers": ["cpu", "gpu"]', "write tiers=cpu,gpu"),
        ('write "period": "week from sunday", "day"', 'write period="week from sunday", "day"'),
        ("You hold 1 of 1 GPU", "You hold 1 of 1 GPU"),
    ],
)  # fmt: skip
def test_settings_in_a_sentence_are_shown_as_they_are_typed(sentence: str, shown: str) -> None:
    assert as_typed(sentence, ":") == shown


def test_a_quota_is_for_a_group_that_the_hub_has(served: Served, typed: Typed) -> None:
    rulebook = served.rules.rulebook
    rulebook.known = replace(rulebook.known, groups=frozenset({"students"}))
    assert typed("quota", "set", "group:studnets", "devices=1") == (
        1,
        "",
        "gpuspawner quota: The quota of group:studnets: the hub has no group 'studnets': write "
        'group:students, or add it to c.JupyterHub.load_groups, like "studnets": {"users": []}.\n',
    )


def test_a_session_is_for_a_group_that_the_hub_has(served: Served, typed: Typed) -> None:
    rulebook = served.rules.rulebook
    rulebook.known = replace(rulebook.known, groups=frozenset({"students"}))
    lab = ("tier=gpu", "seats=1", "when=Mondays 10-12", "from=2026-11-26")
    sentence = (
        "gpuspawner session: The lab session 'a': the hub has no group 'student': write group=students, "
        'or add it to c.JupyterHub.load_groups, like "student": {"users": []}.\n'
    )
    assert typed("session", "add", "a", "group=student", *lab) == (1, "", sentence)
    assert typed("session", "add", "a", "group=students", *lab)[0] == 0
