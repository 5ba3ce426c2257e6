"""`python -m tests.swarm.kernel URL TOKEN USER CODE`: prints what the code prints in the user's server."""

from __future__ import annotations

import asyncio
import sys

import aiohttp

from tests.hub.remote_client import run


async def main(url: str, token: str, user: str, code: str) -> None:
    """Runs the code in a new session, through the proxy."""
    async with aiohttp.ClientSession(url, headers={"Authorization": f"token {token}"}) as session:
        print(await run(session, user, code), end="")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
