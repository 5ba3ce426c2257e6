"""A hub beside another one of the same name: refused while labs of the other run, and what it says."""

from __future__ import annotations

from typing import Any

import pytest
from gpuspawner.core.errors import ConfigError, EngineFault
from gpuspawner.hub import check
from gpuspawner.hub.other_hub import check_alone, others, state_folder
from jupyterhub.app import JupyterHub
from traitlets.config import Config

from tests.unit.fake_docker import ScriptedDocker


def lab(name: str, folder: str) -> dict[str, Any]:
    labels = {"gpuspawner.hub": "course", "gpuspawner.user": name}
    return {
        "Id": "c0ffee" * 4,
        "Names": [f"/course-{name}"],
        "Labels": {**labels, **({"gpuspawner.state-folder": folder} if folder else {})},
    }


def test_labs_of_another_state_folder_are_another_hubs() -> None:
    ours = [lab("ada", "/srv/a"), lab("bob", "")]
    assert others(ours, "/srv/a") is None
    theirs = [lab("eve", "/srv/b"), {**lab("cy", "/srv/b"), "Names": None}, lab("dan", "/srv/c")]
    assert others([*ours, *theirs], "/srv/a") == ("/srv/b", ("c0ffeec0ffee", "course-eve"))


def test_it_names_what_to_set_and_what_to_do_after_a_lost_state_folder() -> None:
    asked: list[Any] = []

    def call(method: str, **kwargs: Any) -> list[dict[str, Any]]:
        asked.append((method, kwargs))
        return [lab(f"u{number}", "/srv/b") for number in range(7)]

    with pytest.raises(ConfigError) as error:
        check_alone(call, "course", "/srv/a")
    wanted = {"label": ["gpuspawner.hub=course", "gpuspawner.state-folder"]}
    assert asked == [("containers", {"filters": wanted})]
    assert str(error.value) == (
        "another hub has the name 'course', too: its state folder is /srv/b, and its labs run (course-u0, "
        "course-u1, course-u2, course-u3, course-u4 and 2 more). Two hubs on one machine differ in all four: "
        "GPUSPAWNER_PORT, GPUSPAWNER_STATE_DIR, GPUSPAWNER_NAME and GPUSPAWNER_SUBNET (without the project's "
        "config file: bind_url, state_dir, hub_id with prefix, and network_name with subnet). If that hub is "
        "no more, because its state folder was lost or moved, end its labs (homes are kept): docker rm -f "
        "$(docker ps -q --filter label=gpuspawner.hub=course --filter 'label=gpuspawner.state-folder=/srv/b')"
    )
    check_alone(call, "course", "/srv/b")


@pytest.mark.parametrize(
    ("answer", "ends", "line"),
    [
        ([lab("eve", "/srv/b")], True, "The hub doesn't start: another hub has the name 'course', too:"),
        ([lab("ada", "/srv/a")], False, ""),
        (OSError("no socket"), False, "Docker doesn't say whether another hub of this name has labs:"),
    ],
)
def test_a_hub_ends_beside_another_one_and_starts_without_docker(
    answer: Any, ends: bool, line: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Scripted(ScriptedDocker):
        def __init__(self, *_: Any) -> None:
            fault = EngineFault(str(answer)) if isinstance(answer, OSError) else answer
            super().__init__({"containers": [fault]})

        def close(self) -> None:
            pass

    monkeypatch.setattr(check, "DockerEngine", Scripted)
    app = JupyterHub(config=Config({
        "GpuDockerSpawner": {"hub_id": "course"}, "GpuSite": {"state_dir": "/srv/a"},
    }))  # fmt: skip
    app.log.propagate = True
    if ends:
        with pytest.raises(SystemExit):
            check.check_other_hub(app)
    else:
        check.check_other_hub(app)
    told = [each.getMessage() for each in caplog.records if each.levelname != "DEBUG"]
    assert [text[: len(line)] for text in told] == ([line] if line else [])


def test_a_relative_state_folder_is_made_absolute() -> None:
    assert state_folder("/srv/a") == "/srv/a"
    assert state_folder("state").startswith("/")
