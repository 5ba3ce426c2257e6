"""Settings that can't be used keep the hub from starting: told when the config file has been read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gpuspawner
import pytest
from gpuspawner.hub.check import check_addresses, check_spawner
from jupyterhub.app import JupyterHub
from traitlets import TraitError
from traitlets.config import Config


@pytest.mark.filterwarnings("ignore:Config option")
@pytest.mark.parametrize(
    ("cls", "setting", "value", "sentence"),
    [
        ("DockerSpawner", "remove", False, "must stay True"),
        ("GpuDockerSpawner", "image", "Lab", "it is not the name of an image"),
        ("GpuDockerSpawner", "subnet", "10.213.0.0/33", r"c\.GpuDockerSpawner\.subnet: the network"),
        ("GpuDockerSpawner", "container_user", "root", "give numbers"),
        ("GpuDockerSpawner", "allowed_images", ["quay.io/jupyter/*"], "say which tags"),
        ("GpuSite", "tiers", [{"name": "gpu", "mode": "slice"}], "no pool has that mode"),
        ("GpuSite", "tiers", "gpu", "tiers"),
        ("GpuDockerSpawner", "extra_host_config", {"privileged": True}, r'past_lease = \["privileged"\]'),
        ("DockerSpawner", "extra_host_config", {"binds": ["/dev:/dev"]}, r'past_lease = \["binds"\]'),
        ("DockerSpawner", "extra_create_kwargs", {"user": "0:0"}, r'past_lease = \["user"\]'),
        ("GpuLab", "past_lease", ["all"], "c.GpuLab.past_lease has 'all': use user, privileged"),
        ("GpuLab", "shm", "much", "c.GpuLab.shm is 'much'"),
        ("GpuSwarm", "subnet", "10.214.0.0/29", "it needs a /28 for each lab"),
        ("GpuSwarm", "subnets", "10.214.0.0/16", r"There is no setting c\.GpuSwarm\.subnets: use subnet"),
        ("GpuSite", "pool", [], r"There is no setting c\.GpuSite\.pool: use pools"),
    ],
)
def test_it_says_what_and_what_to_do(cls: str, setting: str, value: Any, sentence: str) -> None:
    with pytest.raises(TraitError, match=sentence):
        check_spawner(Config({cls: {setting: value}}))


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("extra_host_config", {"cpuset_cpus": "0-3"}, "'cpuset_cpus', which a service of a Swarm can't have"),
        ("extra_create_kwargs", {"domainname": "x"}, "'domainname'"),
        ("use_internal_ip", False, r"use_internal_ip = True"),
    ],
)
def test_what_labs_of_a_swarm_cant_have(setting: str, value: Any, sentence: str) -> None:
    spawner = {setting: value}
    check_spawner(Config({"GpuDockerSpawner": spawner}))
    with pytest.raises(TraitError, match=sentence):
        check_spawner(Config({"GpuSite": {"engine": "swarm"}, "GpuDockerSpawner": spawner}))


@pytest.mark.parametrize(
    ("engine", "instead"),
    [
        ("docker", "What it would encrypt stays on this machine, where no lab sees the traffic of others"),
        ("swarm", "Between machines, c.GpuSwarm.encrypted encrypts"),
    ],
)
def test_the_hub_s_own_certificates_are_refused_with_what_there_is_instead(engine: str, instead: str) -> None:
    site = {"GpuSite": {"engine": engine}}
    check_spawner(Config({**site, "JupyterHub": {"internal_ssl": False}}))
    with pytest.raises(TraitError) as refused:
        check_spawner(Config({**site, "JupyterHub": {"internal_ssl": True}}))
    assert str(refused.value) == (
        f"c.JupyterHub.internal_ssl can't be used here: remove it. {instead}; for TLS between browsers and "
        "the hub, put a TLS proxy in front of c.JupyterHub.bind_url"
    )


def test_what_only_a_user_can_tell_is_left_to_the_spawn() -> None:
    config = Config()
    config.GpuDockerSpawner.allowed_images = lambda spawner: 1 // 0
    config.GpuDockerSpawner.extra_host_config = lambda spawner: 1 // 0
    check_spawner(config)
    check_spawner(Config())


def test_only_where_a_hub_reads_the_file_it_is_checked() -> None:
    """The broker and the commands read it too, without JupyterHub, and check what they use."""
    broken = Config({"DockerSpawner": {"remove": False}})
    assert not JupyterHub.initialized()
    gpuspawner.check_settings(broken)
    JupyterHub.instance()
    try:
        with pytest.raises(TraitError, match="must stay True"):
            gpuspawner.check_settings(broken)
    finally:
        JupyterHub.clear_instance()


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("GpuSite.tiers = [{'name': 'gpu', 'mode': 'slice'}]", "c.GpuSite.tiers: tier 'gpu' has mode"),
        (
            "GpuDockerSpawner.allowed_images = ['quay.io/jupyter/*']",
            "allowed_images: 'quay.io/jupyter/*': say which tags (\"quay.io/jupyter/*:2026-*\"",
        ),
        ("JupyterHub.internal_ssl = True", "c.JupyterHub.internal_ssl can't be used here: remove it."),
    ],
)
def test_a_real_hub_says_it_in_one_line_and_does_not_start(
    setting: str, sentence: str, tmp_path: Path
) -> None:
    config = tmp_path / "jupyterhub_config.py"
    config.write_text(
        "from gpuspawner import check_settings\n"
        "c.JupyterHub.spawner_class = 'gpu-docker'\n"
        f"c.{setting}\n"
        "check_settings(c)\n"
    )
    command = [sys.executable, "-m", "jupyterhub", "-f", str(config)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert "Bad config encountered during initialization: " in line
    assert sentence in line


def test_a_hub_that_would_listen_in_a_network_that_isnt_there_says_how_to_make_it() -> None:
    config = Config()
    config.GpuDockerSpawner.subnet = "192.0.2.0/24"  # for documentation: no machine has it
    check_addresses(config)
    config.JupyterHub.hub_ip = "192.0.2.1"
    with pytest.raises(TraitError) as refused:
        check_addresses(config)
    assert str(refused.value) == (
        "The hub can't listen on 192.0.2.1, this machine's address in the labs' network 'gpuspawner', "
        "because Docker has no such network yet: run 'python -m gpuspawner.tools.make_network --config FILE' "
        "with the hub's own config file, then start the hub again"
    )


@pytest.mark.parametrize(
    ("settings", "instead"),
    [
        ({"base_url": "/x/"}, "http://127.0.0.1:8000/x/"),
        ({"base_url": "/x"}, "http://127.0.0.1:8000/x/"),
        ({"ip": "10.0.0.1", "port": 80}, "http://10.0.0.1:80/"),
    ],
)
def test_what_would_open_the_proxy_is_refused_with_what_to_set_instead(
    settings: dict[str, Any], instead: str
) -> None:
    hub = {"bind_url": "http://127.0.0.1:8000", **settings}
    with pytest.raises(TraitError) as refused:
        check_addresses(Config({"JupyterHub": hub}))
    assert str(refused.value) == (
        f"c.JupyterHub.{next(iter(settings))} is set beside c.JupyterHub.bind_url, which JupyterHub would "
        "then ignore, and its proxy could listen on all addresses: set "
        f'c.JupyterHub.bind_url = "{instead}" instead'
    )
    check_addresses(Config({"JupyterHub": {"bind_url": instead}}))
    check_addresses(Config({"JupyterHub": settings}))


def test_a_file_of_ones_own_is_checked_to_its_end(tmp_path: Path) -> None:
    """It loads the project's own, whose last line asks for the check, and sets more after it."""
    (tmp_path / "theirs.py").write_text(
        "from gpuspawner import check_settings\n"
        "c.JupyterHub.bind_url = 'http://127.0.0.1:8000'\n"
        "check_settings(c)\n"
    )
    config = tmp_path / "jupyterhub_config.py"
    config.write_text("load_subconfig('theirs.py')\nc.JupyterHub.base_url = '/x/'\n")
    command = [sys.executable, "-m", "jupyterhub", "-f", str(config)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert 'set c.JupyterHub.bind_url = "http://127.0.0.1:8000/x/" instead' in done.stderr
