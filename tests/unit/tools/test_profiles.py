"""KubeSpawner's profiles become tiers; what has no counterpart is named.

The first two have the form of the examples in KubeSpawner's help of `profile_list` (7.1), the others that of
zero-to-jupyterhub's pages "Customizing User Environment" and "Customizing User Resources" (4.x).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from gpuspawner.broker.app import GpuBroker
from gpuspawner.core.errors import ConfigError
from gpuspawner.tools import cli
from gpuspawner.tools.profiles import Defaults, render, translate

DEMO = {
    "display_name": "Demo 1",
    "description": "The first one",
    "slug": "demo-1",
    "default": True,
    "profile_options": {
        "image": {
            "display_name": "Image",
            "choices": {
                "base": {
                    "display_name": "Base",
                    "kubespawner_override": {"image": "jupyter/base-notebook:1"},
                },
                "minimal": {
                    "display_name": "Minimal",
                    "default": True,
                    "kubespawner_override": {"image": "jupyter/minimal-notebook:1"},
                },
            },
            "unlisted_choice": {
                "enabled": True,
                "display_name": "Another image",
                "validation_regex": "^jupyter/.+:.+$",
                "kubespawner_override": {"image": "{value}"},
            },
        },
    },
    "kubespawner_override": {"default_url": "/lab"},
}
GPU = {
    "display_name": "Demo 2",
    "slug": "demo-2",
    "kubespawner_override": {"extra_resource_guarantees": {"nvidia.com/gpu": "1"}},
}
UNLISTED = (
    "profile 'Demo 1': option 'image': unlisted_choice: for images add a pattern to allowed_images, like "
    '"quay.io/jupyter/*:2026-*"; for anything else there is no free text'
)
URL = (
    "profile 'Demo 1': default_url: set c.GpuDockerSpawner.default_url for all tiers, or by tier in "
    "c.Spawner.pre_spawn_hook"
)
OF_ALL = "images: the list of images is offered with every tier, not with one profile only"

VALUES = """
singleuser:
  image: {name: jupyter/minimal-notebook, tag: 2343e33dec46}
  memory: {limit: 4G, guarantee: 1G}
  cpu: {limit: .5}
  profileList:
    - display_name: "Minimal environment"
      description: "Python only."
    - display_name: "Data science"
      description: "Python, R and Julia."
      default: true
      kubespawner_override:
        image: jupyter/datascience-notebook:2343e33dec46
    - display_name: "Learning"
      kubespawner_override:
        image: jupyter/datascience-notebook:2343e33dec46
        lifecycle_hooks:
          postStart: {exec: {command: [sh, -c, "gitpuller https://example.org/course main course"]}}
    - display_name: "GPU server"
      description: "With a GPU"
      kubespawner_override:
        mem_limit: 32G
        cpu_limit: "8"
        extra_resource_limits: {nvidia.com/gpu: "1"}
"""


def test_the_example_of_kubespawner() -> None:
    found = translate([DEMO, GPU])
    assert list(found.tiers) == [
        {
            "name": "demo-1",
            "title": "Demo 1",
            "description": "The first one",
            "image": "jupyter/minimal-notebook:1",
        },
        {"name": "demo-2", "title": "Demo 2", "devices": 1},
    ]
    assert dict(found.images) == {"Base": "jupyter/base-notebook:1", "Minimal": "jupyter/minimal-notebook:1"}
    assert [str(each) for each in found.left] == [UNLISTED, URL, OF_ALL]


def test_its_second_form_is_a_dict_by_slug() -> None:
    slugless = {key: value for key, value in GPU.items() if key != "slug"}
    assert translate({"demo-2": slugless}).tiers == translate([GPU]).tiers


def test_the_values_of_zero_to_jupyterhub(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(VALUES)
    assert cli.main(["translate-profiles", str(file)]) == 1
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        "",
        "Not translated:",
        "  profile 'Learning': lifecycle_hooks: set c.GpuDockerSpawner.post_start_cmd for all tiers, or use "
        "nbgitpuller's links",
    ]
    assert said.out == EXPECTED


EXPECTED = """\
# Translated from values.yaml by gpuspawner translate-profiles.
c.GpuDockerSpawner.image = "jupyter/minimal-notebook:2343e33dec46"
c.Spawner.mem_limit = "4G"
c.Spawner.cpu_limit = 0.5
c.GpuSite.tiers = [
    {
        "name": "minimal-environment",
        "title": "Minimal environment",
        "description": "Python only.",
    },
    {
        "name": "data-science",
        "title": "Data science",
        "description": "Python, R and Julia.",
        "image": "jupyter/datascience-notebook:2343e33dec46",
        "default": True,
    },
    {
        "name": "learning",
        "title": "Learning",
        "image": "jupyter/datascience-notebook:2343e33dec46",
    },
    {
        "name": "gpu-server",
        "title": "GPU server",
        "description": "With a GPU",
        "mem_limit": "32G",
        "cpu_limit": 8,
        "devices": 1,
    },
]
"""


def test_what_is_printed_loads(tmp_path: Path) -> None:
    file = tmp_path / "jupyterhub_config.py"
    profiles = yaml.safe_load(VALUES)["singleuser"]["profileList"]
    file.write_text(render(translate([*profiles, DEMO]), "it"))
    broker = GpuBroker()
    broker.initialize(["--config", str(file)])
    assert [(tier.name, tier.want.device_count) for tier in broker.tiers] == [
        ("minimal-environment", 0),
        ("data-science", 0),
        ("learning", 0),
        ("gpu-server", 1),
        ("demo-1", 0),
    ]
    assert [tier.name for tier in broker.tiers if tier.default] == ["data-science"]


def test_other_choices_make_tiers() -> None:
    size = {
        "display_name": "Size",
        "choices": {
            "S": {"display_name": "Small", "kubespawner_override": {"mem_limit": "4G", "cpu_limit": 1}},
            "L": {
                "display_name": "Large",
                "default": True,
                "kubespawner_override": {
                    "mem_limit": "16G",
                    "extra_resource_limits": {"nvidia.com/mig-1g.10gb": 2},
                },
            },
        },
    }
    found = translate([{"display_name": "<b>R &amp; D</b>", "slug": "RD", "profile_options": {"size": size}}])
    assert list(found.tiers) == [
        {"name": "rd-s", "title": "R & D, Small", "mem_limit": "4G", "cpu_limit": 1},
        {
            "name": "rd-l",
            "title": "R & D, Large",
            "mem_limit": "16G",
            "mode": "mig",
            "mig_profile": "1g.10gb",
            "devices": 2,
            "default": True,
        },
    ]
    assert [str(each) for each in found.left] == [
        "profile 'R & D': slug: 'RD' became 'rd': change links and programs that use it"
    ]


def test_too_many_combinations_are_left_to_the_admin() -> None:
    choices = {
        str(number): {"display_name": str(number), "kubespawner_override": {"cpu_limit": number}}
        for number in range(1, 6)
    }
    options = {name: {"choices": choices} for name in ("one", "two")}
    found = translate([{"display_name": "All", "profile_options": options}])
    assert list(found.tiers) == [{"name": "all", "title": "All", "cpu_limit": 1}]
    assert [str(each) for each in found.left] == [
        "profile 'All': profile_options: 25 combinations: write the tiers that you need"
    ]


def override(**values: Any) -> list[str]:
    profile = {"display_name": "A", "kubespawner_override": values}
    return [each.why for each in translate([profile]).left]


def test_what_can_not_be_translated_is_said() -> None:
    assert override(node_selector={"gpu": "t4"}) == [
        'there is one machine: for a type of GPU add the tier\'s model, like "H100"'
    ]
    assert override(mem_limit=lambda spawner: "1G") == [
        "it is a function: set the value, or use c.Spawner.pre_spawn_hook"
    ]
    assert override(mem_limit="much") == [
        "'much' can't be used: write it like \"8G\", a CPU limit like 2 or 0.5"
    ]
    assert override(extra_labels={"a": "b"}) == ["it has no counterpart in a tier"]
    assert override(extra_resource_limits={"amd.com/gpu": 1}) == ["it is not an NVIDIA GPU"]
    assert override(extra_resource_limits={"nvidia.com/gpu.shared": 1}) == [
        'for a part of a GPU use a pool and a tier with "mode": "slice"'
    ]
    assert override(extra_resource_limits={"nvidia.com/gpu": 1, "nvidia.com/mig-1g.10gb": 1}) == [
        "a tier has one kind of device: make a tier for each"
    ]
    assert override(image="Not An Image")[0].startswith(
        "left out: c.GpuSite.tiers: tier 'a': image is 'Not An Image'"
    )
    assert override(image=None, mem_limit=None) == []


def test_two_profiles_of_one_slug() -> None:
    found = translate([{"display_name": "A", "slug": "a"}, {"display_name": "B", "slug": "a"}])
    assert [tier["title"] for tier in found.tiers] == ["A"]
    assert [str(each) for each in found.left] == [
        "profile 'B': left out: c.GpuSite.tiers has 'a' twice: give each tier a different name"
    ]


def test_gpus_for_everybody_are_in_every_tier() -> None:
    defaults = Defaults(resource_limits={"nvidia.com/gpu": 1})
    none = {
        "display_name": "None",
        "kubespawner_override": {"extra_resource_limits": {"nvidia.com/gpu": None}},
    }
    found = translate([{"display_name": "One"}, none], defaults)
    assert [tier.get("devices") for tier in found.tiers] == [1, None]


@pytest.mark.parametrize(
    ("profiles", "said"),
    [
        (lambda spawner: [], "profile_list is a function, whose profiles differ by user"),
        ([], "profile_list is empty"),
        (["a"], "profile 1 is no dictionary"),
        ("text", "profile_list is empty or no list"),
    ],
)
def test_what_is_no_list_of_profiles(profiles: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        translate(profiles)


CONFIG = """
c = get_config()
c.Spawner.mem_limit = "2G"
c.KubeSpawner.image = "jupyter/base-notebook:1"
c.KubeSpawner.profile_list = [{"display_name": "One", "slug": "one"}]
"""


def test_a_hubs_own_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "hub.py"
    file.write_text(CONFIG)
    assert cli.main(["translate-profiles", str(file), "--json"]) == 0
    said = capsys.readouterr()
    assert (json.loads(said.out), said.err) == (
        {
            "image": "jupyter/base-notebook:1",
            "mem_limit": "2G",
            "cpu_limit": None,
            "tiers": [{"name": "one", "title": "One"}],
            "allowed_images": {},
            "left": [],
        },
        "",
    )


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("hub.py", "c = get_config()", "hub.py doesn't set c.KubeSpawner.profile_list"),
        ("hub.py", "import nothing_of_this_name", "run it where its imports are installed"),
        ("a.yaml", "a: [", "is no YAML"),
        ("a.yaml", "a: 1", "it has no singleuser.profileList"),
        ("none.yaml", None, "there is no file"),
    ],
)
def test_files_that_can_not_be_read(
    name: str, text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    assert cli.main(["translate-profiles", str(tmp_path / name)]) == 2
    assert said in capsys.readouterr().err


def test_one_file_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["translate-profiles"]) == 2
    assert capsys.readouterr().err == (
        "gpuspawner translate-profiles: give one file: gpuspawner translate-profiles FILE\n"
    )
