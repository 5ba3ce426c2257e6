"""What a site's subclass may override: a step of DockerSpawner's that isn't called here is refused.

DockerSpawner (14) starts a container in steps of its own (`create_object`, `start_object` …). A start here
has other ones, so that an override of those would silently do nothing.
"""

from __future__ import annotations

from dockerspawner import DockerSpawner

_INSTEAD = {
    "create_object": "plan_container, which returns Docker's arguments, or create_container",
    "start_object": "create_container: what follows super() there is done before the container starts",
    "stop_object": "stop",
    "remove_object": "run_post_stop_hook, or set post_stop_hook",
    "get_command": "get_args, or set cmd",
    "get_ip_and_port": "get_url, or set use_internal_ip, use_internal_hostname and host_ip",
    "get_network_ip": "get_url, or set network_name",
    "check_allowed": "offered_images, or set allowed_images, which may be a function",
    "load_user_options": "start, or set apply_user_options, which JupyterHub calls since 5.3",
}
"""Each step with what to override instead. JupyterHub (6.1) doesn't call the last one at all."""


def check_steps(cls: type, ours: type) -> None:
    """Raises TypeError, with the remedy, if `cls` overrides a step that `ours` doesn't call."""
    for name, instead in _INSTEAD.items():
        stock = getattr(ours, name, None) or getattr(DockerSpawner, name, None)
        if getattr(cls, name, None) is not stock:
            raise TypeError(
                f"{cls.__name__} overrides {name}, which {ours.__name__} doesn't call: override {instead}"
            )
