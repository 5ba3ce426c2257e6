"""The name of the hub comes from the shared config, whatever the spawner's class is called."""

from __future__ import annotations

from gpuspawner.config.hub_name import hub_of
from traitlets.config import Config


def test_the_name_of_the_hub_is_its_spawner_s_setting() -> None:
    config = Config()
    assert hub_of(config) == "hub"
    config.JupyterHub.port = 8000
    config.OurSpawner.hub_id = "course-a"
    assert hub_of(config) == "course-a"
