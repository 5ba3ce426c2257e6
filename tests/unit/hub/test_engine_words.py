"""What Docker really said, and what is made of it."""

from __future__ import annotations

import pytest
from gpuspawner.core.errors import EngineFault
from gpuspawner.hub.engine_words import Said, explain, home_fault, unusable
from gpuspawner.hub.home import Home, Volume

FAULTS = {
    'could not select device driver "cdi" with capabilities: [[gpu]]': "device",
    "failed to create task for container: CDI device injection failed: unresolvable CDI devices "
    "nvidia.com/gpu=GPU-1: unknown": "device",
    'error gathering device information while adding custom device "/dev/x": no such file': "device",
    "error while creating mount source path '/proc/x': mkdir /proc/x: no such file or directory": "mount",
    'invalid mount config for type "bind": bind source path does not exist: /srv/none': "mount",
    "error while mounting volume '/var/lib/docker/volumes/x/_data': failed to mount local volume: mount "
    "nfs:/x: connection refused": "mount",
    "open /var/lib/docker/volumes/aaa: file name too long": "name_too_long",
    "failed to copy: write /var/lib/docker/tmp/x: no space left on device": "disk_full",
    "Unknown runtime specified nvidia": "runtime",
    'exec: "docker-init": executable file not found in $PATH': "no_init",
    "driver failed programming external connectivity: Bind for 127.0.0.1:80 failed: port is already "
    "allocated": "port",
    "error setting rlimits for ready process: error setting rlimit type 8: operation not permitted": "limits",
    "something quite new": "docker",
}


@pytest.mark.parametrize(("words", "reason"), FAULTS.items(), ids=FAULTS.values())
def test_each_fault_has_a_reason_of_its_own(words: str, reason: str) -> None:
    said = explain(EngineFault(words, 500))
    assert said.reason == reason
    assert said.user.endswith(".")
    assert "Docker doesn't answer" not in said.user


def test_the_admins_part_has_dockers_words_and_the_command() -> None:
    words = "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=GPU-1"
    assert explain(EngineFault(words, 500)) == Said(
        "Docker can't give your server its GPU. Choose a server without a GPU, or tell an admin.",
        f"Docker says: {words}. Run `gpuspawner doctor`; `nvidia-ctk cdi generate "
        "--output=/etc/cdi/nvidia.yaml` writes a new CDI spec.",
        "device",
    )


LONG = "n" * 200


@pytest.mark.parametrize(
    ("volume", "user", "server", "sentence"),
    [
        (f"gpuspawner-home-{LONG}", LONG, "",
         "Your user name is too long for Docker: ask your admin for a shorter one."),
        (f"gpuspawner-home-{LONG}", LONG.upper(), "train",
         "Your user name is too long for Docker: ask your admin for a shorter one."),
        ("gpuspawner-home-" + "-f0-9f-98-80" * 30, "😀" * 30, "e",
         "Your user name is too long for Docker: ask your admin for a shorter one."),
        (f"gpuspawner-ada-{LONG}", "ada", LONG,
         "The name of your server is too long for Docker. Give it a shorter one."),
        ("x" * 300, "ada", "", "A name in the settings of this hub is too long for Docker: tell your admin."),
    ],
)  # fmt: skip
def test_the_name_that_is_too_long_is_named(volume: str, user: str, server: str, sentence: str) -> None:
    words = f"create {volume}: mkdir /var/lib/docker/volumes/{volume}: file name too long"
    assert explain(EngineFault(words, 500), user, server) == Said(
        sentence,
        "Docker says: file name too long. A shorter c.GpuDockerSpawner.prefix or volume name also helps.",
        "name_too_long",
        400,
    )


def test_only_a_docker_that_doesnt_answer_is_called_so() -> None:
    assert explain(EngineFault("Docker does not answer: refused")) == Said(
        "Docker doesn't answer right now, so no server can be started. Try again in a minute.",
        "see `docker info` and the log of the hub.",
    )
    assert (
        "has no permission to use Docker"
        in explain(EngineFault("Docker does not answer: Permission denied")).user
    )


def test_a_keyword_that_docker_py_doesnt_have() -> None:
    error = TypeError("HostConfig.__init__() got an unexpected keyword argument 'shm'")
    assert str(unusable(error)) == (
        "extra_host_config or extra_create_kwargs has 'shm', which docker-py doesn't know: remove it, "
        "or use the names of docker-py's create_host_config or create_container"
    )
    assert str(unusable(TypeError("Invalid type for ulimits param"))).endswith(
        ": Invalid type for ulimits param"
    )


HOME = Home(Volume("/srv/homes/{username}", "/srv/homes/ada", "/home/jovyan"), unknown=False)
DENIED = "PermissionError: [Errno 13] Permission denied: '/home/jovyan/.local'"


def test_a_home_that_belongs_to_root() -> None:
    assert home_fault(DENIED, HOME, "1000:100", "lab:1") == (
        "Your server can't write to your home /home/jovyan: it belongs to another user, probably root. "
        "Admin: run `chown -R 1000:100 /srv/homes/ada`."
    )
    volume = Home(Volume("home-{username}", "home-ada", "/home/jovyan"), unknown=False)
    assert home_fault(DENIED, volume, "1000:100", "lab:1").endswith(
        "`docker run --rm -u 0 --entrypoint chown -v home-ada:/home lab:1 -R 1000:100 /home`."
    )


@pytest.mark.parametrize(
    ("words", "home"), [(DENIED, None), ("Permission denied: '/etc/x'", HOME), ("it ended", HOME)]
)
def test_what_has_nothing_to_do_with_the_home(words: str, home: Home | None) -> None:
    assert home_fault(words, home, "1000:100", "lab:1") == ""
