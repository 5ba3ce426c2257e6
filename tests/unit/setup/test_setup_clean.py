"""`make clean-demo` ends the notebooks of its own hub only, also beside one of the same name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import pytest
from gpuspawner.core import labels

from setup.clean import clean
from setup.demo import Demo, read_demo
from setup.steps import SetupError


class Engine:
    """A Docker Engine with one lab and one home, of the hub `gpuspawner` with the state folder given."""

    def __init__(self, state_folder: str) -> None:
        self.removed: list[str] = []
        found = {labels.HUB: "gpuspawner", labels.STATE_FOLDER: state_folder}
        self.api = SimpleNamespace(containers=lambda **_: [{"Names": ["/lab-ada"], "Labels": found}])
        self.containers = SimpleNamespace(list=lambda **_: [self._thing("lab-ada")])
        self.volumes = SimpleNamespace(
            list=lambda: [self._thing("gpuspawner-home-ada"), self._thing("other")]
        )
        self.networks = SimpleNamespace(list=lambda **_: [])

    def _thing(self, name: str) -> Any:
        return SimpleNamespace(name=name, remove=lambda **_: self.removed.append(name))

    def close(self) -> None:
        """As Docker's client."""


@pytest.fixture
def demo(tmp_path: Path) -> Demo:
    return read_demo({"GPUSPAWNER_STATE_DIR": str(tmp_path / "state")})


def test_its_own_labs_and_homes_go(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(str(demo.state_dir))
    monkeypatch.setattr(docker, "from_env", lambda **_: engine)
    clean(demo, homes=True)
    assert engine.removed == ["lab-ada", "gpuspawner-home-ada"]


def test_labs_of_a_hub_with_the_same_name_stay_and_it_is_said(
    demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine("/elsewhere/.state")
    monkeypatch.setattr(docker, "from_env", lambda **_: engine)
    with pytest.raises(
        SetupError, match=r"lab-ada are of another hub .* /elsewhere/.state: nothing was removed"
    ):
        clean(demo, homes=True)
    assert engine.removed == []
