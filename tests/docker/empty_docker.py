"""A Docker Engine without any container, for a broker whose labs all run on another machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web


async def _answer(request: web.Request) -> web.StreamResponse:
    """What docker-py asks: the version, the engine's facts, a list, and events, of which there are none."""
    match request.path.rsplit("/", 1)[-1]:
        case "version":
            return web.json_response({"ApiVersion": "1.41", "Version": "20.10"})
        case "json":
            return web.json_response([])
        case "events":
            stream = web.StreamResponse()
            await stream.prepare(request)
            await asyncio.sleep(600)
            return stream
        case _:
            return web.json_response({})


@asynccontextmanager
async def empty_docker(path: Path) -> AsyncIterator[str]:
    """Listens on this path; yields what DOCKER_HOST must be."""
    app = web.Application()
    app.router.add_route("*", "/{any:.*}", _answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    try:
        yield f"unix://{path}"
    finally:
        await runner.cleanup()
