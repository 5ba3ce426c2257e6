"""Stops the hub from starting with invalid settings: checks them when the config file has been read.

JupyterHub creates the first spawner for the first user, so by itself it starts with any spawner settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from traitlets import TraitError
from traitlets.config import Application, Config

from ..config.lab import GpuLab
from ..config.swarm import GpuSwarm
from ..core.errors import ConfigError, EngineFault
from .docker import DockerEngine
from .network import gateway_of, has_address
from .other_hub import check_alone, state_folder
from .places import take_over
from .quiet import quieten
from .reach import check, drop_devices, ways
from .spawner import GpuDockerSpawner
from .swarm.service import check_carried


def spawner_of(config: Config) -> GpuDockerSpawner:
    """A spawner without a server, to read its settings. Raises ConfigError for an invalid setting."""
    try:
        # DockerSpawner needs a server's name in any case.
        return GpuDockerSpawner(config=config, user=SimpleNamespace(name="nobody"))
    except TraitError as error:
        raise ConfigError(str(error)) from error


def watch_settings(app: Application) -> None:
    """Has JupyterHub's whole configuration checked when it has been read, before anything listens.

    `session_factory` is the first trait that JupyterHub (6.1) itself sets after that, in `init_db`. Its trait
    `config` tells too early: `update_config` merges into it without a notice.
    """
    app.observe(_check_all, names="session_factory")


def _check_all(change: Any) -> None:
    """Ends the hub, after one sentence, for settings that can't be used; else prepares its log."""
    app: Any = change.owner
    try:
        check_spawner(app.config)
        check_addresses(app.config)
        check_class(app.spawner_class)
    except TraitError as error:
        app.log.critical("The hub doesn't start: %s", error)
        app.exit(1)
    check_other_hub(app)
    take_over(app)
    quieten(app.log)


def check_other_hub(app: Any) -> None:
    """Ends the hub if another one of the same name has labs here; without Docker's answer it starts."""
    spawner = spawner_of(app.config)
    engine = DockerEngine(spawner.client_kwargs, spawner.tls_config)
    try:
        check_alone(engine.call_here, spawner.hub_id, state_folder(spawner.site.state_dir))
    except ConfigError as error:
        app.log.critical("The hub doesn't start: %s", error)
        app.exit(1)
    except EngineFault as fault:
        app.log.warning("Docker doesn't say whether another hub of this name has labs: %s", fault)
    finally:
        engine.close()


def check_class(chosen: type) -> None:
    """Raises TraitError if the hub's spawner isn't ours: it would give out servers without any lease."""
    if not issubclass(chosen, GpuDockerSpawner):
        raise TraitError(
            f"c.JupyterHub.spawner_class is {chosen.__name__}, whose servers get no GPU by lease: remove the "
            'line, or set "gpu-docker" or a subclass of gpuspawner.GpuDockerSpawner'
        )


def check_addresses(config: Config) -> None:
    """Raises TraitError, with the remedy, for an address on which hub or proxy can't or mustn't listen."""
    try:
        _check_proxy(config)
        _check_address(config, spawner_of(config))
    except ConfigError as error:
        raise TraitError(str(error)) from error


def check_spawner(config: Config) -> None:
    """Raises TraitError, with the remedy, for invalid settings of spawner and site.

    JupyterHub (6.1) prints its message and doesn't start.
    """
    try:
        spawner = spawner_of(config)
        _check_sections(config)
        _check_inner_tls(config, spawner.site.engine)
        spawner.tiers  # noqa: B018  (parsed here)
        if not callable(spawner.allowed_images):
            spawner.offered_images()
        _check_reach(spawner)
        _check_engine(config, spawner)
    except ConfigError as error:
        raise TraitError(str(error)) from error


_OTHER_SPAWNERS = {
    "SystemUserSpawner": "every lab runs as container_user, and homes are set with c.DockerSpawner.volumes",
    "SwarmSpawner": "labs run on this machine, and their network is c.DockerSpawner.network_name",
}
"""DockerSpawner's other classes, with what to know instead."""


_NEARLY = 0.85
"""difflib's ratio of names that differ by a letter or two: `mem_limt` and `mem_limit` have 0.94."""


def _check_sections(config: Config) -> None:
    """Raises ConfigError for settings that traitlets ignores: of a class that isn't used, or misspelt."""
    for section, instead in _OTHER_SPAWNERS.items():
        for name in config.get(section, ()):
            raise ConfigError(f"c.{section}.{name} has no effect here: remove it ({instead})")
    for section, kind in (("GpuDockerSpawner", GpuDockerSpawner), ("GpuLab", GpuLab), ("GpuSwarm", GpuSwarm)):
        _check_names(section, config.get(section, ()), kind.class_trait_names(config=True))
    for section in ("DockerSpawner", "Spawner"):
        _check_names(section, config.get(section, ()), GpuDockerSpawner.class_trait_names(config=True))


def _check_names(section: str, names: Iterable[str], known: list[str]) -> None:
    """Raises ConfigError for a name that is nearly a setting: traitlets ignores it with a warning.

    Names that are not like any may belong to a subclass.
    """
    for name in names:
        close = [] if name in known else get_close_matches(name, known, 1, _NEARLY)
        if close:
            raise ConfigError(f"There is no setting c.{section}.{name}: use {close[0]}")


def _check_reach(spawner: GpuDockerSpawner) -> None:
    """What a container could reach past its lease; a function is asked at each start. Raises ConfigError."""
    rules = spawner.lab_settings.rules(spawner.site.state_dir)
    create = {"user": spawner.container_user, **_known(spawner.extra_create_kwargs)}
    host = {"cap_drop": ["ALL"], **_known(spawner.extra_host_config)}
    drop_devices(create, host, rules.past_lease)
    check(ways(create, host, rules.private), rules.past_lease)


def _check_engine(config: Config, spawner: GpuDockerSpawner) -> None:
    """What labs of a Swarm can't have; a function is asked at each start. Raises ConfigError."""
    GpuSwarm(parent=spawner)  # raises TraitError
    if spawner.site.engine != "swarm":
        return
    create, host = _known(spawner.extra_create_kwargs), _known(spawner.extra_host_config)
    drop_devices(create, host, spawner.lab_settings.rules(spawner.site.state_dir).past_lease)
    check_carried(create, host)
    if not spawner.use_internal_ip or spawner.use_internal_hostname:
        raise ConfigError(
            'With c.GpuSite.engine = "swarm" labs are reached through the gateway: set '
            "c.GpuDockerSpawner.use_internal_ip = True and remove use_internal_hostname"
        )


def _check_inner_tls(config: Config, engine: str) -> None:
    """Raises ConfigError for `internal_ssl`: broker and spawner speak plain HTTP with hub, proxy and labs."""
    if not config.get("JupyterHub", Config()).get("internal_ssl"):
        return
    if engine == "swarm":
        instead = "Between machines, c.GpuSwarm.encrypted encrypts"
    else:
        instead = "What it would encrypt stays on this machine, where no lab sees the traffic of others"
    raise ConfigError(
        f"c.JupyterHub.internal_ssl can't be used here: remove it. {instead}; for TLS between browsers and "
        "the hub, put a TLS proxy in front of c.JupyterHub.bind_url"
    )


def _known(setting: Any) -> dict[str, Any]:
    return dict(setting) if isinstance(setting, Mapping) else {}


def _check_address(config: Config, spawner: GpuDockerSpawner) -> None:
    """Raises ConfigError for a hub that is to listen in the labs' network while there is none.

    JupyterHub (6.1) would end with "Cannot assign requested address".
    """
    address = gateway_of(spawner.subnet)
    if config.get("JupyterHub", Config()).get("hub_ip") == address and not has_address(address):
        raise ConfigError(
            f"The hub can't listen on {address}, this machine's address in the labs' network "
            f"{spawner.network_name!r}, because Docker has no such network yet: run 'python -m "
            "gpuspawner.tools.make_network --config FILE' with the hub's own config file, then start the hub "
            "again"
        )


def _check_proxy(config: Config) -> None:
    """Raises ConfigError for settings by which the proxy would listen elsewhere than `bind_url` says.

    With `base_url`, `ip` or `port` beside it JupyterHub (6.1) makes a new one of these three, whose defaults
    are all addresses and port 8000.
    """
    hub = config.get("JupyterHub", Config())
    beside = [name for name in ("base_url", "ip", "port") if name in hub]
    if not beside or "bind_url" not in hub:
        return
    address = urlsplit(str(hub["bind_url"]))
    host, port = hub.get("ip", address.hostname or ""), hub.get("port", address.port or 8000)
    path = hub.get("base_url", address.path or "/").strip("/")
    wanted = f"{address.scheme}://{host}:{port}/{path}{'/' if path else ''}"
    raise ConfigError(
        f"c.JupyterHub.{beside[0]} is set beside c.JupyterHub.bind_url, which JupyterHub would then ignore, "
        f'and its proxy could listen on all addresses: set c.JupyterHub.bind_url = "{wanted}" instead'
    )
