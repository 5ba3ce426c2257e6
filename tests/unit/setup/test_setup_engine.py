"""setup/engine.py, setup/apt.py, setup/ready.py: what is said where nothing can be installed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from docker.errors import DockerException

from setup import apt, engine, proxy, ready
from setup.steps import ROOT, SetupError, step


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine answers here."""

    def refuse(**options: object) -> None:
        raise DockerException("Error while fetching server API version: Connection refused")

    monkeypatch.setattr("docker.from_env", refuse)
    monkeypatch.delenv("DOCKER_HOST", raising=False)


def said(error: pytest.ExceptionInfo[SetupError]) -> tuple[str, str]:
    return error.value.problem, error.value.remedy


def ensure() -> None:
    with step("engine") as current:
        engine.ensure_engine(current)


@pytest.mark.usefixtures("silent")
def test_an_engine_named_by_the_user_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    with pytest.raises(SetupError) as error:
        ensure()
    assert said(error) == (
        "the Docker Engine at DOCKER_HOST=tcp://127.0.0.1:9 does not answer",
        "start it, or unset DOCKER_HOST to use this machine's own",
    )


def test_an_engine_that_this_user_may_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> None:
        raise DockerException("PermissionError(13, 'Permission denied')")

    monkeypatch.setattr("docker.from_env", refuse)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    with pytest.raises(SetupError) as error:
        ensure()
    assert said(error) == (
        "Docker Engine runs, but this user may not use it",
        'run this as root, or join its group (`sudo usermod -aG docker "$USER"`) and log in again',
    )


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize(
    ("uid", "tools", "why"),
    [(1000, True, "this is not root"), (0, False, "there is no apt on this system")],
)
def test_where_nothing_can_be_installed_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, uid: int, tools: bool, why: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: uid)
    monkeypatch.setattr(
        "shutil.which", lambda name, path=None: f"/x/{name}" if tools and "apt" in name else None
    )
    with pytest.raises(SetupError) as error:
        ensure()
    assert said(error) == (
        f"Docker Engine is missing, and {why}",
        "install it (on Debian or Ubuntu, as root: apt-get install docker.io iptables), then run this again",
    )


@pytest.mark.usefixtures("silent")
def test_an_engine_that_only_root_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda name, path=None: f"/x/{name}")
    monkeypatch.setattr(engine, "_wait", lambda step, seconds, process=None: False)
    with pytest.raises(SetupError) as error:
        ensure()
    assert said(error) == (
        "Docker Engine is installed but does not run",
        "start it, as root: systemctl start docker",
    )


def test_apt_is_asked_for_lists_only_when_it_fails_without(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        calls.append(" ".join(command[1:2] + command[-1:]))
        code = 0 if "update -q" in calls else 100
        return subprocess.CompletedProcess(command, code, "", "E: Unable to locate package file")

    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda name, path=None: f"/x/{name}")
    monkeypatch.setattr("subprocess.run", run)
    with step("programs") as current:
        apt.install(["file"], "file", current)
    assert calls == ["install file", "update -q", "install file"]


def test_apts_own_reason_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = "W: noise\nE: Failed to fetch x\nE: Unable to fetch some archives\n"
    done = subprocess.CompletedProcess([], 100, "", stderr)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda name, path=None: f"/x/{name}")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: done)
    with pytest.raises(SetupError) as error, step("programs") as current:
        apt.install(["file"], "file", current)
    assert error.value.problem == (
        "file could not be installed: Failed to fetch x; Unable to fetch some archives"
    )


def test_the_proxy_and_this_environment_come_first_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/env/bin/python")
    monkeypatch.setenv("PATH", "/usr/bin:/env/bin:/bin")
    assert proxy.search_path() == f"{ROOT}/.cache/proxy/node_modules/.bin:/env/bin:/usr/bin:/bin"


def test_a_step_that_does_not_exist_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert ready.main(["proxy", "nothing"]) == 2
    steps = "proxy,engine,images,programs,cdi,prometheus"
    assert capsys.readouterr().err == f"usage: python -m setup.ready {{{steps}}} ...\n"


def test_an_error_ends_setting_up_with_its_block(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    def fail() -> None:
        raise SetupError("no room", "make some")

    monkeypatch.setattr(ready, "STEPS", {"one": lambda: done.append("one"), "two": fail, "three": fail})
    assert ready.main(["one", "two", "three"]) == 1
    assert (done, capsys.readouterr().err) == (["one"], "\n✗ no room\n  → make some\n\n")


def test_ci_and_the_readme_run_these_verbs() -> None:
    makefile = (ROOT / "Makefile").read_text()
    verbs = ("hub", "check", "test-slow", "test-unit", "test-gpu", "bench", "images", "lock", "clean-demo")
    for verb in verbs:
        assert f"\n{verb}: venv ## " in makefile
    assert "\ntest: check ## " in makefile
    assert "\ntest-all: test test-slow ## " in makefile
    assert Path(ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec make test-all"
