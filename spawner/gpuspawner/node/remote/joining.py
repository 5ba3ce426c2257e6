"""The agent's way to the broker: it joins once with a line from there, then it has its own certificate."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import ssl
from contextlib import suppress
from dataclasses import dataclass

from ...core.errors import ConfigError, Fault
from .certificates import Identity, fingerprint

JOIN_SECONDS = 30.0
_LINE = re.compile(r"([^\s/]+):(\d{1,5})/([0-9a-f]{32})/([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class JoinLine:
    """What `gpuspawner node token` prints: where the broker is, a token, and by what it is known."""

    host: str
    port: int
    token: str
    broker_fingerprint: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}/{self.token}/{self.broker_fingerprint}"


def parse_line(text: str) -> JoinLine:
    """Raises ConfigError."""
    found = _LINE.fullmatch(text.strip())
    if found is None:
        raise ConfigError("This isn't a line of `gpuspawner node token`: copy the whole line")
    return JoinLine(found[1], int(found[2]), found[3], found[4])


async def join(line: JoinLine, name: str, identity: Identity) -> None:
    """Joins the broker. The token goes only to the program with the line's fingerprint. Raises Fault."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the fingerprint is checked instead
    request = await asyncio.to_thread(identity.make_request, name)
    try:
        async with asyncio.timeout(JOIN_SECONDS):
            reader, writer = await asyncio.open_connection(line.host, line.port, ssl=context)
            try:
                certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b""
                if not hmac.compare_digest(line.broker_fingerprint, fingerprint(certificate)):
                    raise Fault("Another program answers at that address: ask for a new line")
                asked = {"join": line.token, "name": name, "request": request}
                writer.write(json.dumps(asked).encode() + b"\n")
                answer = json.loads(await reader.readline() or b"{}")
            finally:
                writer.close()
                with suppress(OSError):  # its end is not what this is about
                    await writer.wait_closed()
    except (OSError, TimeoutError, ValueError) as error:
        raise Fault(f"The broker at {line.host}:{line.port} can't be reached: {error}") from error
    if "certificate" not in answer:
        raise Fault(f"The broker refused: {answer.get('value', 'it gave no reason')}")
    await asyncio.to_thread(
        identity.keep, answer["certificate"], answer["authority"], line.broker_fingerprint
    )


async def connect(
    host: str, port: int, identity: Identity
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection of a machine that has joined. Raises OSError, Fault."""
    context = await asyncio.to_thread(identity.context)
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        identity.check_broker(writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b"")
    except OSError:
        writer.transport.abort()
        raise
    return reader, writer
