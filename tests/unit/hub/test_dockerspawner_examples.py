"""DockerSpawner's documentation (14.0), example by example: it works as written, or a sentence refuses it.

The same for what JupyterHub's documentation (6.1) shows of options and of subclasses. What needs a container
is in tests/hub/test_dockerspawner_examples.py.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.core.errors import BadOption, ConfigError
from gpuspawner.hub.check import check_class, check_spawner
from gpuspawner.hub.container import ContainerPlan
from gpuspawner.hub.spawner import GpuDockerSpawner
from jupyterhub.spawner import LocalProcessSpawner
from jupyterhub.utils import maybe_future
from tornado.web import HTTPError
from traitlets import TraitError
from traitlets.config import Config

from tests.unit.fake_spawner import make_container, make_spawner

ROOT = Path(__file__).resolve().parents[3]
IMAGE = {"Config": {"Cmd": ["start-notebook.py"], "WorkingDir": "/home/jovyan"}}
STACK = "quay.io/jupyter/scipy-notebook:2023-10-23"


def of(**settings: Any) -> Config:
    """Settings of `c.DockerSpawner`, under the name that its documentation writes."""
    return Config({"DockerSpawner": settings})


async def planned(config: Config, options: dict[str, Any] | None = None) -> ContainerPlan:
    """What a start with these settings would create."""
    spawner = make_spawner(config)
    spawner.user_options = options or {}
    return await plan_of(spawner)


async def plan_of(spawner: GpuDockerSpawner) -> ContainerPlan:
    return await spawner.plan_container(spawner._make_job(spawner._choose()), IMAGE, None)


# ---- choosing a spawner, an image, a command


@pytest.mark.parametrize("section", ["SystemUserSpawner", "SwarmSpawner"])
def test_settings_of_its_other_classes_are_refused(section: str) -> None:
    with pytest.raises(TraitError, match=rf"c\.{section}\.network_name has no effect here: remove it"):
        check_spawner(Config({section: {"network_name": "swarm_net"}}))


def test_another_spawner_class_is_refused() -> None:
    with pytest.raises(
        TraitError, match=r"c\.JupyterHub\.spawner_class is LocalProcessSpawner, whose servers"
    ):
        check_class(LocalProcessSpawner)
    check_class(type("Ours", (GpuDockerSpawner,), {}))


async def test_image_and_command() -> None:
    plan = await planned(of(image=STACK))
    assert (plan.create["image"], plan.create["command"]) == (STACK, ["start-notebook.py"])
    config = of(image=STACK)
    config.Spawner.cmd = ["jupyter", "labhub"]
    config.Spawner.notebook_dir = "/home/jovyan/work"
    config.Spawner.default_url = "/lab"
    plan = await planned(config)
    assert plan.create["command"] == ["jupyter", "labhub"]
    assert plan.create["environment"]["JUPYTERHUB_ROOT_DIR"] == "/home/jovyan/work"
    assert plan.create["environment"]["JUPYTERHUB_DEFAULT_URL"] == "/lab"


@pytest.mark.parametrize("policy", ["always", "Always", "IfNotPresent", "never", "skip"])
def test_pull_policies_in_any_case(policy: str) -> None:
    assert make_spawner(of(pull_policy=policy)).pull_policy.lower() == policy.lower()


# ---- data persistence


async def test_a_volume_for_the_notebook_dir() -> None:
    plan = await planned(of(volumes={"jupyterhub-user-{username}": "/home/jovyan/work"}))
    assert plan.host["binds"] == {"jupyterhub-user--41da": {"bind": "/home/jovyan/work", "mode": "rw"}}


async def test_a_mount() -> None:
    mount = {"source": "/jupyterhub-user-{username}", "target": "/home/jovyan/work", "type": "bind"}
    plan = await planned(of(mounts=[mount], volumes={}))
    assert plan.host["mounts"] == [
        {
            "Target": "/home/jovyan/work",
            "Source": "/jupyterhub-user--41da",
            "Type": "bind",
            "ReadOnly": False,
        }
    ]


async def test_shared_and_read_only_volumes_and_their_propagation() -> None:
    config = of(
        volumes={
            "home-{username}": "/home/jovyan",
            "/srv/shared": {"bind": "/shared", "mode": "ro", "propagation": "rshared"},
        },
        read_only_volumes={"/srv/data": "/data"},
    )
    assert (await planned(config)).host["binds"] == {
        "home--41da": {"bind": "/home/jovyan", "mode": "rw"},
        "/srv/shared": {"bind": "/shared", "mode": "ro", "propagation": "rshared"},
        "/srv/data": {"bind": "/data", "mode": "ro"},
    }


async def test_its_function_for_the_names_of_volumes() -> None:
    config = of(
        volumes={"{username}": "/home/jovyan"},
        format_volume_name=lambda text, spawner: f"v-{text.strip('{}')}",
    )
    assert list((await planned(config)).host["binds"]) == ["v-username"]


# ---- limits


async def test_a_memory_limit() -> None:
    config = Config()
    config.Spawner.mem_limit = "2G"
    plan = await planned(config)
    assert (plan.host["mem_limit"], plan.create["environment"]["MEM_LIMIT"]) == (2 << 30, str(2 << 30))


async def test_limits_by_functions_of_the_user() -> None:
    def memory(spawner: Any) -> str:
        return {"Ada": "4G", "bob": "2G"}.get(spawner.user.name, "1G")

    def cpu(spawner: Any) -> float:
        return {"Ada": 2.5}.get(spawner.user.name, 1)

    plan = await planned(of(mem_limit=memory, cpu_limit=cpu))
    assert (plan.host["mem_limit"], plan.host["cpu_quota"]) == (4 << 30, 250_000)
    plan = await planned(of(cpu_limit=cpu, extra_host_config={"cpu_period": 50_000}))
    assert (plan.host["cpu_period"], plan.host["cpu_quota"]) == (50_000, 125_000)


# ---- arguments of Docker's


def test_root_is_refused_with_the_way_to_mean_it() -> None:
    with pytest.raises(TraitError, match=r'past_lease = \["user"\]'):
        check_spawner(of(extra_create_kwargs={"user": "root"}))


def test_the_hosts_network_ends_a_start_with_a_sentence() -> None:
    container = make_container(NetworkSettings={"Networks": {"host": {"IPAddress": ""}}})
    with pytest.raises(ConfigError, match="the container has no address on the network 'gpuspawner'"):
        make_spawner(of(extra_host_config={"network_mode": "host"})).lab_network.address_of(container)


async def test_both_dictionaries_may_come_from_functions() -> None:
    async def create(spawner: Any) -> dict[str, Any]:
        return {"hostname": "lab-{username}"}

    plan = await planned(of(extra_create_kwargs=create, extra_host_config=lambda spawner: {"shm_size": "1g"}))
    assert (plan.create["hostname"], plan.host["shm_size"]) == ("lab--41da", "1g")


async def test_links_and_network() -> None:
    plan = await planned(of(links={"jupyterhub": "hub"}, network_name="course"))
    assert (plan.host["links"], plan.host["network_mode"]) == ({"jupyterhub": "hub"}, "course")


async def test_a_published_port() -> None:
    plan = await planned(of(use_internal_ip=False, host_ip="0.0.0.0"))
    assert (plan.host["port_bindings"], plan.create["ports"]) == ({8888: ("0.0.0.0",)}, {"8888/tcp": None})
    assert (await planned(of(use_internal_ip=False))).host["port_bindings"] == {8888: ("127.0.0.1",)}


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"prefix": "jupyter"}, "jupyter--41da"),
        ({"name_template": "{prefix}-{username}-{servername}", "prefix": "j"}, "j--41da-lab"),
        ({"name_template": "{raw_username}"}, "Ada"),
        ({"escape": "legacy"}, "gpuspawner-Ada--lab"),
    ],
)
def test_names_of_containers(settings: dict[str, Any], name: str) -> None:
    server = "" if "prefix" in settings and "name_template" not in settings else "lab"
    assert make_spawner(of(**settings), name=server)._object_name_default() == name


# ---- deprecated names


@pytest.mark.filterwarnings("ignore:Config option")
@pytest.mark.parametrize(
    ("old", "value", "new", "became"),
    [
        ("container_ip", "0.0.0.0", "host_ip", "0.0.0.0"),
        ("container_port", 9999, "port", 9999),
        ("container_image", "lab:1", "image", "lab:1"),
        ("container_prefix", "old", "prefix", "old"),
        ("container_name_template", "x-{username}", "name_template", "x-{username}"),
        ("image_whitelist", ["lab:1"], "allowed_images", {"lab:1": "lab:1"}),
    ],
)
def test_deprecated_names_set_the_new_ones_and_say_so(
    old: str, value: Any, new: str, became: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        spawner = make_spawner(of(**{old: value}))
    images = spawner.offered_images().listed if new == "allowed_images" else getattr(spawner, new)
    assert images == became
    assert f"GpuDockerSpawner.{old} is deprecated in DockerSpawner" in caplog.text
    assert f"use GpuDockerSpawner.{new} instead" in caplog.text


def test_the_deprecated_name_for_keeping_containers_is_refused_as_the_new_one() -> None:
    check_spawner(of(remove_containers=True))
    with pytest.raises(TraitError, match="must stay True"):
        check_spawner(of(remove=False))


# ---- images that users choose


async def test_the_default_form_offers_its_images() -> None:
    allowed = {"SciPy": STACK, "R": "quay.io/jupyter/r-notebook:2023-10-23"}
    spawner = make_spawner(of(allowed_images=allowed), inspect_image=[IMAGE])
    form = await spawner.get_options_form()
    assert 'value="SciPy"' in form
    assert 'value="R"' in form


@pytest.mark.parametrize(
    "allowed",
    [
        [STACK],
        {STACK: STACK},
        lambda spawner: [STACK] if spawner.user.name == "Ada" else None,
        "*",
    ],
)
async def test_every_form_of_allowed_images(allowed: Any) -> None:
    plan = await planned(of(allowed_images=allowed), {"image": STACK})
    assert plan.create["image"] == STACK
    assert await make_spawner(of(allowed_images=allowed)).check_allowed(STACK) == STACK


async def test_an_image_by_its_short_name() -> None:
    allowed = of(allowed_images={"SciPy": STACK})
    assert (await planned(allowed, {"image": "SciPy"})).create["image"] == STACK
    with pytest.raises(HTTPError, match="isn't allowed here") as refused:
        await make_spawner(allowed).check_allowed("quay.io/jupyter/r-notebook:2023-10-23")
    assert refused.value.status_code == 400


def test_one_image_as_a_string_is_refused_as_there() -> None:
    with pytest.raises(TraitError, match="give a list of images"):
        check_spawner(of(allowed_images=STACK))


async def test_its_example_of_a_form_for_any_image() -> None:
    """examples/image_form: a field of the site's own, and DockerSpawner reads it."""

    def form(spawner: Any) -> str:
        return f'<label for="image">Image</label><input name="image" placeholder="{spawner.image}">'

    spawner = make_spawner(of(options_form=form, allowed_images="*", image="jupyter/base-notebook"))
    assert 'placeholder="jupyter/base-notebook"' in await spawner.get_options_form()
    spawner.user_options = spawner.run_options_from_form({"image": [STACK]})
    assert (await plan_of(spawner)).create["image"] == STACK
    spawner.user_options = spawner.run_options_from_form({"image": [""]})
    assert (await plan_of(spawner)).create["image"] == "jupyter/base-notebook"


# ---- JupyterHub's own options


async def test_a_dict_from_options_to_settings() -> None:
    """`apply_user_options` as a dict, with `options_from_form = "simple"`."""
    config = Config()
    config.Spawner.apply_user_options = {"image_input": "image"}
    config.Spawner.options_from_form = "simple"
    config.Spawner.options_form = '<input name="image_input">'
    spawner = make_spawner(config)
    spawner.user_options = spawner.run_options_from_form({"image_input": [STACK], "checked": ["on"]})
    assert spawner.user_options == {"image_input": STACK, "checked": True}
    await spawner._run_apply_user_options(spawner.user_options)
    assert (await plan_of(spawner)).create["image"] == STACK


@pytest.mark.parametrize(
    ("option", "attribute", "wanted"), [("2G", "mem_limit", 2 << 30), ("/lab", "default_url", "/lab")]
)
async def test_the_dict_coerces_text_as_the_hub_does(option: str, attribute: str, wanted: object) -> None:
    config = Config()
    config.Spawner.apply_user_options = {"chosen": attribute}
    spawner = make_spawner(config)
    spawner.user_options = {"profile": "cpu", "chosen": option}
    await spawner._run_apply_user_options(spawner.user_options)
    assert getattr(spawner, attribute) == wanted
    plan = await plan_of(spawner)
    if attribute == "mem_limit":
        assert plan.host["mem_limit"] == wanted
    spawner.user_options = {"chosen": {"not": "text"}}
    with pytest.raises(HTTPError, match="Invalid user options"):
        await spawner._run_apply_user_options(spawner.user_options)


async def test_a_function_that_applies_options_may_refuse() -> None:
    def apply(spawner: Any, options: dict[str, Any]) -> None:
        raise HTTPError(409, "Not this one")

    config = Config()
    config.Spawner.apply_user_options = apply
    with pytest.raises(HTTPError, match="Not this one"):
        await make_spawner(config)._run_apply_user_options({"profile": "cpu"})


async def test_a_function_that_applies_options_sent_by_rest() -> None:
    def apply(spawner: Any, options: dict[str, Any]) -> None:
        if isinstance(options.get("debug"), bool):
            spawner.environment["DEBUG"] = str(options["debug"])

    config = Config()
    config.Spawner.apply_user_options = apply
    spawner = make_spawner(config)
    spawner.user_options = {"profile": "cpu", "debug": True}
    await spawner._run_apply_user_options(spawner.user_options)
    assert (await plan_of(spawner)).create["environment"]["DEBUG"] == "True"
    assert spawner.user_options == {"profile": "cpu", "debug": True}


def test_without_such_a_function_an_unknown_option_is_refused() -> None:
    spawner = make_spawner()
    spawner.user_options = {"debug": True}
    with pytest.raises(BadOption, match=r"There is no option 'debug'\. The only option is profile\."):
        spawner._choose()


class WithForm(GpuDockerSpawner):
    """JupyterHub's example of a spawner with a form: arguments and variables from the user."""

    def _options_form_default(self) -> str:
        return '<input name="args"><textarea name="env"></textarea>'

    def options_from_form(self, formdata: dict[str, list[str]]) -> dict[str, Any]:
        lines = formdata.get("env", [""])[0].splitlines()
        return {
            "argv": formdata.get("args", [""])[0].split(),
            "env": dict(line.split("=", 1) for line in lines if "=" in line),
        }

    def get_args(self) -> list[str]:
        return [*super().get_args(), *self.user_options.get("argv", [])]

    def get_env(self) -> dict[str, str]:
        return {**super().get_env(), **self.user_options.get("env", {})}


async def test_a_subclass_with_a_form_of_its_own() -> None:
    usual = make_spawner()
    spawner = WithForm(config=Config(), user=usual.user, hub=usual.hub, api_token="s3cret")
    spawner.shared = usual.shared
    assert await spawner.get_options_form() == '<input name="args"><textarea name="env"></textarea>'
    form = {"args": ["--debug"], "env": ["COURSE=ml\nCUDA_VISIBLE_DEVICES=7"]}
    spawner.user_options = spawner.run_options_from_form(form)
    plan = await plan_of(spawner)
    assert plan.create["command"] == ["start-notebook.py", "--debug"]
    assert plan.create["environment"]["COURSE"] == "ml"
    assert plan.dropped == ("CUDA_VISIBLE_DEVICES",)


async def test_a_hook_that_changes_the_spawner_before_the_start() -> None:
    def hook(spawner: Any) -> None:
        spawner.environment["GREETING"] = f"hello {spawner.user.name}"
        spawner.volumes["/srv/course"] = {"bind": "/course", "mode": "ro"}

    config = Config()
    config.Spawner.pre_spawn_hook = hook
    spawner = make_spawner(config)
    await maybe_future(spawner.run_pre_spawn_hook())
    plan = await plan_of(spawner)
    assert plan.create["environment"]["GREETING"] == "hello Ada"
    assert plan.host["binds"]["/srv/course"] == {"bind": "/course", "mode": "ro"}


async def test_our_documents_own_example_of_a_subclass() -> None:
    text = (ROOT / "docs" / "from-dockerspawner.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    settings = {"c": Config()}
    exec(code, settings)
    chosen = settings["c"].JupyterHub.spawner_class
    check_class(chosen)
    usual = make_spawner(create_container=[{"Id": "c1"}], connect_container_to_network=[None])
    spawner = chosen(config=Config(), user=usual.user, hub=usual.hub, api_token="s3cret")
    spawner.shared = usual.shared
    plan = ContainerPlan({"name": "x", "image": "lab:1"}, {"network_mode": "other"}, ())
    spawner.shared.docker.answers["create_host_config"] = [{}]
    assert await spawner.create_container(plan) == "c1"
    assert spawner.shared.docker.calls[-1] == "connect_container_to_network"


async def test_a_subclass_may_do_things_around_start() -> None:
    class Ours(GpuDockerSpawner):
        async def start(self) -> str:
            self.environment = {**self.environment, "BEFORE": "1"}
            return await super().start()

        async def create_container(self, plan: ContainerPlan) -> str:
            container_id = await super().create_container(plan)
            await self.docker("connect_container_to_network", container_id, "databases")
            return container_id

    assert issubclass(Ours, GpuDockerSpawner)


@pytest.mark.parametrize(
    ("step", "instead"),
    [
        ("create_object", "plan_container, which returns Docker's arguments, or create_container"),
        (
            "start_object",
            "create_container: what follows super() there is done before the container starts",
        ),
        ("stop_object", "stop"),
        ("remove_object", "run_post_stop_hook, or set post_stop_hook"),
        ("get_command", "get_args, or set cmd"),
        ("get_ip_and_port", "get_url, or set use_internal_ip, use_internal_hostname and host_ip"),
        ("get_network_ip", "get_url, or set network_name"),
        ("check_allowed", "offered_images, or set allowed_images, which may be a function"),
        ("load_user_options", "start, or set apply_user_options, which JupyterHub calls since 5.3"),
    ],
)
def test_a_step_that_is_not_called_here_can_not_be_overridden(step: str, instead: str) -> None:
    async def override(self: Any) -> None: ...

    mixin = type("Mixin", (), {step: override})
    with pytest.raises(TypeError) as refused:
        type("Ours", (mixin, GpuDockerSpawner), {})
    assert str(refused.value) == (
        f"Ours overrides {step}, which GpuDockerSpawner doesn't call: override {instead}"
    )
