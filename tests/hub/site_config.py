"""What sites set beside ours: their hooks, forms, environment, limits, names and groups."""

import os
from pathlib import Path

c = get_config()  # noqa: F821
told = Path(os.environ["GPUSPAWNER_TEST_TOLD"])


def tell(word):
    """A hook that writes down that it was called, and for whom."""

    def hook(spawner, *_):
        with told.open("a") as lines:
            lines.write(f"{word} {spawner.user.name}\n")

    return hook


def form(spawner):
    """The site's own page: a tier and a course."""
    return (
        '<input name="profile" value="cpu"><input name="course" value="ml">'
        f'<p id="site-form">Hello {spawner.user.name}</p>'
    )


def read(form_data):
    """What the site's form gives."""
    return {"profile": form_data["profile"][0], "course": form_data["course"][0]}


def apply(spawner, options):
    """What the site makes of its own key."""
    spawner.environment["COURSE"] = options.get("course", "none")


c.GpuDockerSpawner.options_form = form
c.GpuDockerSpawner.options_from_form = read
c.GpuDockerSpawner.apply_user_options = apply
c.GpuDockerSpawner.environment = {"WHO": lambda spawner: spawner.user.name, "PLAIN": "yes"}
c.GpuDockerSpawner.args = ["--debug"]
c.GpuDockerSpawner.notebook_dir = "/home/jovyan/work"
c.GpuDockerSpawner.default_url = "/lab/tree/start.ipynb"
c.GpuDockerSpawner.mem_limit = "128M"
c.GpuDockerSpawner.cpu_limit = 0.5
c.GpuDockerSpawner.auth_state_hook = tell("auth")
c.GpuDockerSpawner.pre_spawn_hook = tell("before")
c.GpuDockerSpawner.post_stop_hook = tell("after")
c.GpuDockerSpawner.group_overrides = {
    "01-big": {"groups": ["big"], "spawner_override": {"mem_limit": "192M"}},
}
c.GpuDockerSpawner.allowed_images = ["gpuspawner-hubtest/lab", "gpuspawner-hubtest/other"]
c.GpuDockerSpawner.name_template = "{prefix}-{username}-of-{servername}"
c.GpuSite.tiers = [*c.GpuSite.tiers, {"name": "small", "title": "Small", "mem_limit": "160M"}]
c.JupyterHub.load_groups = {"big": {"users": ["grace"]}}
c.JupyterHub.allow_named_servers = True
