"""The spawner's answers to the hub, about settings, options and addresses."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import weakref
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest
from docker.api.client import APIClient
from gpuspawner.core.errors import (
    BadOption,
    ConfigError,
    EngineFault,
    NoCapacity,
    QueueTimeout,
    StartFault,
)
from gpuspawner.core.labels import Owner
from gpuspawner.core.model import ContainerPatch, GpuRequest
from gpuspawner.core.want import Want
from gpuspawner.hub import offer
from gpuspawner.hub.container import ContainerPlan
from gpuspawner.hub.engine_words import explain
from gpuspawner.hub.launch import LaunchJob
from gpuspawner.hub.pages import render_failure
from gpuspawner.hub.problem import CONFIG_SENTENCE
from gpuspawner.hub.spawner import GpuDockerSpawner
from gpuspawner.protocol.messages import RefusalMessage
from jupyterhub.spawner import SpawnException
from jupyterhub.utils import maybe_future
from tornado.web import HTTPError
from traitlets import TraitError
from traitlets.config import Config

from tests.unit.fake_docker import ScriptedDocker
from tests.unit.fake_spawner import OfferingBroker, make_offer, make_spawner

# ---- settings


def test_the_defaults_are_safe_and_cover_the_queue() -> None:
    spawner = make_spawner()
    assert {
        name: getattr(spawner, name)
        for name in (
            "remove", "use_internal_ip", "network_name", "prefix", "volumes", "container_user",
            "http_timeout", "poll_interval", "start_timeout", "hub_id", "env_keep", "allowed_images",
            "subnet", "object_name", "will_resume",
        )
    } == {
        "remove": True,
        "use_internal_ip": True,
        "network_name": "gpuspawner",
        "prefix": "gpuspawner",
        "volumes": {"{prefix}-home-{username}": "/home/jovyan"},
        "container_user": "1000:100",
        "http_timeout": 120,
        "poll_interval": 10,
        "start_timeout": 900 + 120 + 900 + 120,
        "hub_id": "hub",
        "env_keep": [],
        "allowed_images": {},
        "subnet": "10.213.0.0/20",
        "object_name": "gpuspawner--41da",
        "will_resume": False,
    }  # fmt: skip


def test_a_longer_start_timeout_is_kept() -> None:
    assert make_spawner(Config({"Spawner": {"start_timeout": 5000}})).start_timeout == 5000


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("remove", False, "must stay True"),
        ("container_user", "0:0", "never 0 as the user"),
        ("container_user", "root", "give numbers"),
    ],
)
def test_settings_that_would_undo_the_safety_are_refused(setting: str, value: Any, sentence: str) -> None:
    with pytest.raises(TraitError, match=sentence):
        make_spawner(Config({"GpuDockerSpawner": {setting: value}}))


def test_server_names_that_differ_only_in_case_have_containers_of_their_own() -> None:
    assert [make_spawner(name=name)._object_name_default() for name in ("lab", "Lab", "la-b")] == [
        "gpuspawner--41da--lab",
        "gpuspawner--41da---4cab",
        "gpuspawner--41da--la-2db",
    ]


async def test_what_a_start_asks_for_and_creates(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config()
    config.GpuSite.tiers = [
        {"name": "pair", "title": "Two", "devices": 2, "model": "H100", "mem_limit": "2G", "cpu_limit": 1.5}
    ]
    config.GpuDockerSpawner.image = "lab:1"
    config.GpuDockerSpawner.cmd = ["start", "{username}"]
    config.GpuDockerSpawner.extra_host_config = lambda spawner: {"shm_size": "1g"}
    monkeypatch.setattr("gpuspawner.hub.lab_facts.may_raise_limits", lambda info: True)
    spawner = make_spawner(config, info=[{"MemTotal": 8 << 30, "NCPU": 2, "LoggingDriver": "local"}])
    job = spawner._make_job(spawner._choose())
    assert job.request is not None
    assert job == LaunchJob(
        name="gpuspawner--41da",
        owner=Owner("hub", "Ada", "", "pair", "/var/lib/gpuspawner"),
        tier=spawner.tiers[0],
        image="lab:1",
        api_path="/api",
        http_timeout_seconds=120.0,
        request=GpuRequest(job.request.lease_id, "hub", "Ada", "", "pair", Want(2, "H100"), ("ml",)),
        secret="s3cret",
    )
    planned = await spawner.plan_container(job, {"Config": {"Cmd": ["unused"]}}, ContainerPatch())
    assert planned.create["command"] == ["start", "{username}"]
    assert planned.create["user"] == "1000:100"
    assert {
        key: planned.create["environment"][key]
        for key in (
            "MEM_LIMIT",
            "CPU_LIMIT",
            "GPUSPAWNER_TIER",
            "JUPYTER_IMAGE_SPEC",
            "NVIDIA_VISIBLE_DEVICES",
        )
    } == {
        "MEM_LIMIT": str(2 << 30),
        "CPU_LIMIT": "1.5",
        "GPUSPAWNER_TIER": "pair",
        "JUPYTER_IMAGE_SPEC": "lab:1",
        "NVIDIA_VISIBLE_DEVICES": "void",
    }
    assert planned.host == {
        "auto_remove": False,
        "binds": {"gpuspawner-home--41da": {"bind": "/home/jovyan", "mode": "rw"}},
        "links": {},
        "mounts": [],
        "network_mode": "gpuspawner",
        "privileged": False,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "ulimits": [
            {"Name": "memlock", "Soft": -1, "Hard": -1},
            {"Name": "stack", "Soft": 64 << 20, "Hard": 64 << 20},
            {"Name": "nofile", "Soft": 65_536, "Hard": 65_536},
        ],
        "oom_score_adj": 500,
        "init": True,
        "pids_limit": 4096,
        "cpu_shares": 256,
        "mem_limit": 2 << 30,
        "memswap_limit": 2 << 30,
        "cpu_period": 100_000,
        "cpu_quota": 150_000,
        "shm_size": "1g",
        "device_requests": None,
    }


# ---- options


def test_only_validated_options_are_kept() -> None:
    spawner = make_spawner(name="x")
    spawner.user_options = {"profile": "nope"}
    with pytest.raises(BadOption):
        spawner._choose()
    assert (spawner.user_options, spawner.orm_spawner.user_options) == ({}, {})
    assert spawner._choose().tier.name == "cpu"
    assert spawner.orm_spawner.user_options == {"profile": "cpu"}


@pytest.mark.parametrize(
    ("stored", "kept"),
    [({"profile": "removed"}, {}), ({"profile": ["gpu"]}, {}), ({"profile": "gpu"}, {"profile": "gpu"})],
)
def test_stored_options_whose_tier_is_gone_trap_nobody(stored: dict[str, Any], kept: dict[str, Any]) -> None:
    spawner = make_spawner(name="x")
    spawner.user_options = stored
    spawner.load_state({})
    assert spawner.user_options == kept


async def test_the_form_without_a_broker_offers_cpu_and_says_why_not_gpu() -> None:
    spawner = make_spawner(inspect_image=[EngineFault("none", 404)])

    form = await spawner.get_options_form()
    assert chosen(form) == {"cpu": " checked", "gpu": " disabled"}
    assert "GPUs can&#39;t be given out right now." in form


def chosen(form: str) -> dict[str, str]:
    """By tier, what its radio button has beside its name: " checked", " disabled" or nothing."""
    return dict(re.findall(r'name="profile" id="[^"]*" value="(\w+)"[^>]* required((?: \w+)*)>', form))


async def test_the_form_offers_what_the_broker_offers_this_user() -> None:
    spawner = make_spawner(inspect_image=[EngineFault("none", 404)])
    spawner.shared = replace(spawner.shared, broker=OfferingBroker(make_offer(free=1)))
    form = await spawner.get_options_form()
    assert chosen(form) == {"cpu": " checked", "gpu": ""}
    assert "1 of 2 simulated GPUs free now." in form
    refused = RefusalMessage(reason="quota_tier", message="Your quota has no GPU: choose CPU.")
    spawner.shared = replace(spawner.shared, broker=OfferingBroker(make_offer(refused=refused)))
    form = await spawner.get_options_form()
    assert chosen(form) == {"cpu": " checked", "gpu": " disabled"}
    assert refused.message in form


async def test_with_one_tier_and_one_image_there_is_no_form_but_for_a_refused_choice() -> None:
    config = Config({"GpuSite": {"tiers": [{"name": "gpu", "title": "GPU", "devices": 1}]}})
    spawner = make_spawner(config, inspect_image=[EngineFault("none", 404)])
    spawner.shared = replace(spawner.shared, broker=OfferingBroker(make_offer(free=1)))
    assert await spawner.get_options_form() == ""
    spawner._refused_form = {"profile": ["root"]}
    assert chosen(await spawner.get_options_form()) == {"gpu": " checked"}


async def test_a_new_server_starts_with_the_last_choice_for_another_one() -> None:
    spawner = make_spawner(name="new", inspect_image=[EngineFault("none", 404)])
    spawner.shared = replace(spawner.shared, broker=OfferingBroker())
    used = {
        "old": SimpleNamespace(user_options={"profile": "cpu"}, last_activity=datetime(2026, 1, 1)),
        "late": SimpleNamespace(user_options={"profile": "gpu"}, last_activity=datetime(2026, 1, 2)),
        "later": SimpleNamespace(user_options={}, last_activity=datetime(2026, 1, 3)),
        "never": SimpleNamespace(user_options={"profile": "cpu"}, last_activity=None),
    }
    spawner.user.orm_spawners.update(used)
    assert chosen(await spawner.get_options_form()) == {"cpu": "", "gpu": " checked"}
    spawner.user_options = {"profile": "cpu"}  # its own comes first
    assert chosen(await spawner.get_options_form()) == {"cpu": " checked", "gpu": ""}


async def test_the_form_says_what_a_lab_may_use_unless_that_is_decided_later() -> None:
    info = {"MemTotal": 8 << 30, "NCPU": 2}
    sentence = "Your server gets 6.0 GiB of memory, up to 3.0 GiB of it in /dev/shm; 4096 processes."
    for settings, shown in (
        ({}, 1),
        ({"extra_host_config": lambda spawner: {}}, 0),
        ({"group_overrides": {"a": {"groups": ["ml"], "spawner_override": {"mem_limit": "1G"}}}}, 0),
    ):
        spawner = make_spawner(
            Config({"GpuDockerSpawner": settings}), inspect_image=[EngineFault("none", 404)], info=[info]
        )
        form = await spawner.get_options_form()
        assert form.count(sentence) == shown


async def test_an_image_that_isn_t_here_is_called_so_where_docker_knows() -> None:
    config = Config({"GpuDockerSpawner": {"image": "lab:1", "allowed_images": ["one:1", "two:1"]}})
    for answer, count in ((EngineFault("none", 404), 2), ({"Id": "i"}, 0), (EngineFault("down"), 0)):
        spawner = make_spawner(config, inspect_image=[answer])
        form = await spawner.get_options_form()
        assert form.count("(pulled first)</option>") == count
        assert form.count("Its image isn&#39;t on this machine yet: pulled first.") == count


async def test_the_form_doesnt_wait_for_a_silent_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    spawner = make_spawner(inspect_image=[EngineFault("none", 404)])

    class Silent:
        async def ask(self, *_: Any) -> Any:
            await asyncio.sleep(60)

    spawner.shared = replace(spawner.shared, broker=Silent())
    monkeypatch.setattr(offer, "BROKER_SECONDS", 0.05)
    assert "The GPU broker doesn&#39;t answer right now." in await spawner.get_options_form()


@pytest.mark.parametrize(
    ("problem", "status", "reason", "message"),
    [
        (BadOption("No such <tier>"), 400, "bad_option", "No such <tier>"),
        (NoCapacity("Too many"), 503, "no_capacity", "Too many"),
        (QueueTimeout("Waited"), 503, "queue_timeout", "Waited"),
        (StartFault("It ended", "exited", "a\nb"), 500, "exited", "It ended Last log lines: a / b"),
        (EngineFault("socket gone"), 503, "docker", explain(EngineFault("socket gone")).user),
        (ConfigError("set x"), 500, "config", CONFIG_SENTENCE),
    ],
)
def test_every_problem_becomes_a_sentence(
    problem: Any, status: int, reason: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    spawner = make_spawner()
    spawner.log = logging.getLogger("test")
    caplog.set_level(logging.INFO)
    error: Any = spawner._exception(problem)
    assert isinstance(error, SpawnException)
    assert (error.status_code, error.reason, error.jupyterhub_message) == (status, reason, message)
    sentence, _, log = message.partition(" Last log lines: ")
    html = render_failure(
        sentence, log.replace(" / ", "\n"), spawner.next_steps.after(problem, spawner.user_options)
    )
    assert error.jupyterhub_html_message == html
    (record,) = caplog.records
    assert record.exc_info is None
    assert record.getMessage().endswith(" user=Ada server= lease=- devices=- container=-")


# ---- Docker's address and network


@pytest.mark.parametrize(
    ("settings", "network", "address"),
    [
        ({}, {"Networks": {"gpuspawner": {"IPAddress": "10.213.0.9"}}}, ("10.213.0.9", 8888)),
        (
            {"use_internal_ip": False},
            {"Ports": {"8888/tcp": [{"HostIp": "127.0.0.1", "HostPort": "32768"}]}},
            ("127.0.0.1", 32768),
        ),
        (
            {"use_internal_ip": False},
            {"Ports": {"8888/tcp": [{"HostIp": "0.0.0.0", "HostPort": "32768"}]}},
            ("127.0.0.1", 32768),
        ),
        ({"use_internal_hostname": True}, {}, ("gpuspawner--41da", 8888)),
    ],
)
def test_where_a_server_answers(settings: dict[str, Any], network: Any, address: tuple[str, int]) -> None:
    spawner = make_spawner(Config({"GpuDockerSpawner": settings}))
    assert (
        spawner.lab_network.address_of({"Name": "/gpuspawner--41da", "NetworkSettings": network}) == address
    )


def test_a_container_without_an_address_names_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"c\.GpuDockerSpawner\.network_name"):
        make_spawner().lab_network.address_of(
            {"NetworkSettings": {"Networks": {"other": {"IPAddress": "1.2.3.4"}}}}
        )


# ---- images


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (["quay.io/jupyter/*"], "say which tags"),
        ("lab:1", 'give a list of images, a dict of names to images, or "\\*"'),
    ],
)
def test_allowed_images_that_cant_work_are_refused_at_load(value: Any, sentence: str) -> None:
    with pytest.raises(TraitError, match=sentence):
        make_spawner(Config({"GpuDockerSpawner": {"allowed_images": value}}))


def test_an_image_that_has_no_image_s_name_is_refused_at_load() -> None:
    with pytest.raises(TraitError, match=r"DockerSpawner\.image is .Lab.: it is not the name of an image"):
        make_spawner(Config({"GpuDockerSpawner": {"image": "Lab"}}))


def test_an_image_may_be_pinned_by_a_digest_beside_its_tag() -> None:
    image = f"quay.io/jupyter/base-notebook:2026-11-02@sha256:{'a' * 64}"
    site = {"tiers": [{"name": "cpu", "devices": 0, "image": image}]}
    spawner = make_spawner(Config({"GpuDockerSpawner": {"image": image}, "GpuSite": site}))
    assert (spawner.image, spawner.tiers[0].image) == (image, image)


def test_a_callable_says_who_may_have_which_image() -> None:
    config = Config()
    config.GpuDockerSpawner.allowed_images = lambda spawner: [f"quay.io/{spawner.user.name.lower()}/*:*"]
    spawner = make_spawner(config, name="x")
    spawner.user_options = {"image": "quay.io/ada/lab:1"}
    assert spawner._choose().image == "quay.io/ada/lab:1"
    spawner.allowed_images = lambda spawner: ["quay.io/ada/*"]
    with pytest.raises(SpawnException, match="A setting of this hub can't be used"):
        spawner.read_form({"image": ["quay.io/ada/lab:1"]})
    spawner.load_state({})
    assert spawner.user_options == {}


async def test_the_form_says_which_tier_s_image_can_t_work() -> None:
    document = {"Config": {"Labels": {"gpuspawner.needs-gpu": "1"}}}
    for allowed, disabled in (({}, 2), (["quay.io/jupyter/*:*"], 0)):
        config = Config({"GpuDockerSpawner": {"image": "lab:1", "allowed_images": allowed}})
        spawner = make_spawner(config, inspect_image=[document])
        spawner.shared = replace(spawner.shared, broker=OfferingBroker())
        form = await spawner.get_options_form()
        assert "lab:1 needs a GPU: choose a tier with a GPU, or another image." in form
        assert (
            "lab:1 needs a real GPU, but the GPUs of this machine are simulated: choose another image."
            in form
        )
        assert (form.count(" disabled>"), spawner.shared.docker.calls) == (
            disabled,
            ["info", "inspect_image"],
        )


async def test_a_refused_form_comes_back_filled_in_once_then_the_last_start() -> None:
    config = Config({"GpuDockerSpawner": {"allowed_images": ["quay.io/jupyter/*:*"]}})
    spawner = make_spawner(config, inspect_image=[None] * 3)
    spawner.user_options = {"profile": "cpu", "image": "quay.io/jupyter/base:1"}
    with pytest.raises(SpawnException, match=r"quay\.io/jupiter/base:1"):
        spawner.read_form({"profile": ["cpu"], "image_typed": ["quay.io/jupiter/base:1"]})
    for shown in ("quay.io/jupiter/base:1", "quay.io/jupyter/base:1", "quay.io/jupyter/base:1"):
        form = await spawner.get_options_form()
        assert f'value="{shown}" autocomplete' in form


# ---- what a lab may use


@pytest.mark.parametrize(
    ("tier", "settings", "overrides", "extra", "limits"),
    [
        ({}, {}, {}, {}, (6 << 30, None)),  # what is left of 8 GiB; one seat on two cores
        ({}, {"mem_limit": "3G", "cpu_limit": 1}, {}, {}, (3 << 30, 1.0)),
        ({"mem_limit": "2G", "cpu_limit": 2}, {"mem_limit": "3G", "cpu_limit": 1}, {}, {}, (2 << 30, 2.0)),
        (
            {"mem_limit": "2G", "cpu_limit": 2},
            {"mem_limit": "3G"},
            {"mem_limit": "5G", "cpu_limit": 4},
            {},
            (5 << 30, 4.0),
        ),
        (
            {"mem_limit": "2G", "cpu_limit": 2},
            {"mem_limit": "3G", "cpu_limit": 1},
            {"mem_limit": "3G", "cpu_limit": 1},
            {},
            (3 << 30, 1.0),
        ),
        ({"mem_limit": "2G"}, {}, {"mem_limit": "5G"}, {"mem_limit": "7g"}, (7 << 30, None)),
    ],
    ids=["default", "setting", "tier", "group", "group with the setting's value", "extra_host_config"],
)
async def test_whose_limit_of_memory_and_cpu_counts(
    tier: dict[str, Any],
    settings: dict[str, Any],
    overrides: dict[str, Any],
    extra: dict[str, Any],
    limits: tuple[int, float | None],
) -> None:
    config = Config()
    config.GpuSite.tiers = [{"name": "t", **tier}]
    config.GpuDockerSpawner.update(settings)
    config.GpuDockerSpawner.extra_host_config = extra
    config.GpuDockerSpawner.group_overrides = {
        "01": {"groups": {"ml"}, "spawner_override": overrides},
        "02": {"groups": {"others"}, "spawner_override": {"mem_limit": "1G", "cpu_limit": 9}},
    }
    spawner = make_spawner(config, info=[{"MemTotal": 8 << 30, "NCPU": 2}])
    for _ in range(2):  # the hub applies them before each start, to the same spawner
        await spawner.apply_group_overrides()
        planned = await spawner.plan_container(spawner._make_job(spawner._choose()), {}, None)
        assert (planned.limits.memory_bytes, planned.limits.cpu_cores) == limits
    assert planned.create["environment"]["MEM_LIMIT"] == str(limits[0])
    assert spawner.shared.docker.calls == ["info"]  # type: ignore[attr-defined]


async def test_a_shared_folder_in_front_is_no_home() -> None:
    config = Config()
    config.GpuDockerSpawner.volumes = {
        "/srv/shared": {"bind": "/shared", "mode": "rw"},
        "/srv/data": {"bind": "/data", "mode": "ro"},
        "home-{username}": "/home/{raw_username}",
    }
    config.GpuDockerSpawner.read_only_volumes = {"/srv/exams/{username}": "/exams"}
    spawner = make_spawner(config, info=[{}])
    image = {"Config": {"WorkingDir": "/workspace"}}
    planned = await spawner.plan_container(spawner._make_job(spawner._choose()), image, None)
    assert (planned.new_home, planned.create["working_dir"], planned.create["environment"]["HOME"]) == (
        "/home/Ada", "/home/Ada", "/home/Ada",
    )  # fmt: skip


async def test_mounts_count_as_volumes() -> None:
    config = Config()
    config.GpuDockerSpawner.volumes = {}
    config.GpuDockerSpawner.mounts = [
        {"source": "shared", "target": "/shared", "type": "volume"},
        {"source": "home-{username}", "target": "/home/jovyan", "type": "volume"},
    ]
    spawner = make_spawner(config, info=[{}])
    planned = await spawner.plan_container(spawner._make_job(spawner._choose()), {}, None)
    assert planned.new_home == "/home/jovyan"


# ---- options of the site's own, and names of images as DockerSpawner has them


async def test_a_site_that_reads_the_form_itself_keeps_its_options() -> None:
    config = Config()
    config.GpuDockerSpawner.options_from_form = lambda form: {"profile": form["profile"][0], "course": "ml"}
    spawner = make_spawner(config)
    spawner.user_options = spawner.options_from_query({"profile": ["gpu"]})
    assert spawner._choose().tier.name == "gpu"
    assert spawner.user_options == {"profile": "gpu", "course": "ml"}
    with pytest.raises(BadOption):
        make_spawner_with({"course": "ml"})._choose()


def make_spawner_with(options: dict[str, Any]) -> Any:
    spawner = make_spawner()
    spawner.user_options = options
    return spawner


async def test_check_allowed_of_a_list_a_dict_and_a_pattern() -> None:
    for setting, name, image in (
        (["lab:1", "lab:2"], "lab:2", "lab:2"),
        ({"usual": "lab:1"}, "usual", "lab:1"),
        (["quay.io/jupyter/*:2026-*"], "quay.io/jupyter/a:2026-1", "quay.io/jupyter/a:2026-1"),
    ):
        config = Config()
        config.GpuDockerSpawner.allowed_images = setting
        spawner = make_spawner(config)
        assert await spawner.check_allowed(name) == image
        with pytest.raises(HTTPError) as refused:
            await spawner.check_allowed("evil:1")
        assert refused.value.status_code == 400


# ---- settings that can't be used

BROKEN = [
    ("GpuSite", "tiers", [{"name": "gpu", "title": "x", "mode": "slice"}], "no pool has that mode"),
    ("GpuSite", "tiers", [], "c.GpuSite.tiers is empty"),
    ("GpuSite", "tires", [], "There is no setting c.GpuSite.tires: use tiers"),
    ("GpuSite", "pools", [{"name": "x", "mode": "slice"}], "c.GpuSite.pools"),
    ("GpuDockerSpawner", "allowed_images", lambda spawner: ["quay.io/jupyter/*"], "say which tags"),
    (
        "GpuDockerSpawner",
        "allowed_images",
        lambda spawner: 1 // 0,
        "c.GpuDockerSpawner.allowed_images is a callable that failed with ZeroDivisionError",
    ),
]
"""Class, setting, value, and what the admin reads in the log."""


@pytest.mark.filterwarnings("ignore:Config option")
@pytest.mark.parametrize(("cls", "setting", "value", "reason"), BROKEN)
async def test_with_a_setting_that_cant_be_used_users_read_a_sentence_and_the_log_has_the_reason(
    cls: str, setting: str, value: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    spawner = make_spawner(Config({cls: {setting: value}}), name="x", inspect_image=[None])
    spawner.log = logging.getLogger("test")
    form = await spawner.get_options_form()
    assert (
        f'<p class="gpu-unusable alert alert-danger" role="alert">{CONFIG_SENTENCE}</p>'.replace("'", "&#39;")
        in form
    )
    for attempt in (
        spawner.start,
        lambda: spawner.run_options_from_form({"profile": ["gpu"]}),
        lambda: spawner.options_from_query({"profile": ["gpu"]}),
    ):
        with pytest.raises(SpawnException) as error:
            await maybe_future(attempt())
        refusal: Any = error.value
        assert (refusal.reason, refusal.status_code) == ("config", 500)
        assert refusal.jupyterhub_message == CONFIG_SENTENCE
    lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(lines) == 4
    assert all(reason in line for line in lines)
    assert all(record.exc_info is None for record in caplog.records)
    spawner.load_state({})  # at the hub's start
    assert await spawner.poll() == 0


async def fail_later(spawner: Any) -> Any:
    await asyncio.sleep(0)
    return 1 // 0


@pytest.mark.parametrize("setting", ["extra_host_config", "extra_create_kwargs"])
@pytest.mark.parametrize("value", [lambda spawner: 1 // 0, fail_later])
async def test_a_setting_of_a_container_that_fails_names_itself(setting: str, value: Any) -> None:
    spawner = make_spawner(Config({"GpuDockerSpawner": {setting: value}}))
    job = spawner._make_job(spawner._choose())
    with pytest.raises(ConfigError, match=rf"c\.GpuDockerSpawner\.{setting} "):
        await spawner.plan_container(job, {}, None)


async def test_a_site_s_callable_may_refuse_on_purpose() -> None:
    def refuse(spawner: Any) -> Any:
        raise SpawnException("Not on Sundays", reason="sunday")

    spawner = make_spawner(Config({"GpuDockerSpawner": {"extra_host_config": refuse}}))
    with pytest.raises(SpawnException, match="Not on Sundays"):
        await spawner.plan_container(spawner._make_job(spawner._choose()), {}, None)


# ---- subclasses and settings of a site


async def test_a_site_may_override_form_options_and_steps() -> None:
    class Ours(GpuDockerSpawner):
        async def pull_image(self, image: str, tell: Any = print) -> dict[str, Any]:
            return {**await super().pull_image(image, tell), "ours": True}

        def get_env(self) -> dict[str, str]:
            return {**super().get_env(), "COURSE": self.user.name}

        def _render_options_form(self) -> str:
            return "<p>our form</p>"

    usual = make_spawner(inspect_image=[{"Id": "i"}])
    spawner = Ours(config=Config(), user=usual.user, hub=usual.hub, api_token="s3cret")
    spawner.shared = usual.shared
    assert await spawner.get_options_form() == "<p>our form</p>"
    assert await spawner.pull_image("lab:1") == {"Id": "i", "ours": True}
    planned = await spawner.plan_container(spawner._make_job(spawner._choose()), {}, None)
    assert planned.create["environment"]["COURSE"] == "Ada"
    config = Config()
    config.Spawner.options_form = "<p>theirs</p>"
    config.Spawner.options_from_form = lambda form: {"profile": form["choice"][0]}
    spawner = make_spawner(config)
    assert await spawner.get_options_form() == "<p>theirs</p>"
    assert spawner.run_options_from_form({"choice": ["gpu"]}) == {"profile": "gpu"}


async def test_docker_py_s_words_for_an_unknown_key_are_told_with_the_setting() -> None:
    docker: Any = ScriptedDocker({})

    def call(method: str, *args: Any, **kwargs: Any) -> Any:
        return APIClient(version="1.41").create_host_config(**kwargs)

    async def run(work: Any) -> Any:
        return work(call)

    docker.run = run
    spawner = make_spawner()
    spawner.shared = replace(spawner.shared, docker=docker)
    plan = ContainerPlan({"name": "x"}, {"network_mode": "none", "shared_memory": "1g"}, ())
    with pytest.raises(ConfigError, match=r"extra_host_config .*shared_memory"):
        await spawner.create_container(plan)


def test_the_image_that_was_chosen_is_in_names_until_the_end() -> None:
    config = Config()
    config.GpuDockerSpawner.image = "site/lab:1"
    config.GpuDockerSpawner.allowed_images = ["other/lab:2"]
    config.GpuDockerSpawner.name_template = "{prefix}-{imagename}-{username}"
    spawner = make_spawner(config)
    spawner.user_options = {"profile": "cpu", "image": "other/lab:2"}
    for _ in range(2):  # a second start without an end between, as after a hub that was killed
        job = spawner._make_job(spawner._choose())
        assert (job.name, job.image) == ("gpuspawner-other-lab-2--41da", "other/lab:2")
        assert (spawner.image, spawner.object_name) == (job.image, job.name)
    spawner.clear_state()
    assert (spawner.image, spawner.object_name) == ("site/lab:1", "gpuspawner-site-lab-1--41da")
    spawner.user_options = {"profile": "cpu"}
    assert spawner._make_job(spawner._choose()).image == "site/lab:1"


def test_a_spawner_goes_with_its_last_reference() -> None:
    """Without the garbage collector: the hub makes one for each start that was cancelled."""
    gc.disable()
    try:
        spawner = make_spawner()
        assert spawner.run_options_from_form({"profile": ["cpu"]}) == {"profile": "cpu"}
        assert [tier.name for tier in spawner.tiers] != []
        kept = weakref.ref(spawner)
        del spawner
        assert kept() is None
    finally:
        gc.enable()
