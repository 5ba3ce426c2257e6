"""A site's spawner whose cancelled starts need three seconds to end, as on a hub with much to do."""

import asyncio

from gpuspawner import GpuDockerSpawner

c = get_config()  # noqa: F821


class SlowToEnd(GpuDockerSpawner):
    """JupyterHub gives a cancelled start one second."""

    async def start(self) -> str:
        """The usual start."""
        try:
            return await super().start()
        except asyncio.CancelledError:
            await asyncio.sleep(3)
            raise


c.JupyterHub.spawner_class = SlowToEnd
