"""From `docker start` to the server's first answer: lab-base against the same JupyterLab installed plainly.

Both images have the same base and install the same wheels. The plain one (bench/plain/Dockerfile) lets
pip compile and runs `jupyterhub-singleuser`; ours runs its own command. A small hub answers what a
single-user server asks at its start. Containers are created before the clock starts; plain and ours
alternate, and which goes first alternates too, so that drift and load hit both halves of a pair alike.

    python bench/startup.py                     # 20 pairs
    python bench/startup.py --pairs 40 --image gpuspawner/lab-torch:0.1.0
    python bench/startup.py --against gpuspawner/lab-base:before    # two images of ours
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import docker
import rich
from docker.models.containers import Container
from hub import bridge_gateway
from rich.table import Table
from spawn import percentile

sys.path.insert(0, str(Path(__file__).parents[1]))
from images.build import PROBE, connect
from images.engine import INPUTS_LABEL, build, inputs_of, run
from images.stock import CACHE, Stock
from images.table import read_table
from images.wheels import Lock, Target, pin, wheelhouse
from setup.steps import step

PLAIN_DOCKERFILE = Path(__file__).resolve().parent / "plain" / "Dockerfile"
PLAIN = "gpuspawner-bench/plain"
PORT = 8888
POLL_SECONDS = 0.005
LIMIT_SECONDS = 120.0


class HubAnswers(BaseHTTPRequestHandler):
    """What a single-user server asks of its hub at the start: the hub's version, and to note activity."""

    def do_GET(self) -> None:
        """The version, as `GET /hub/api/` gives it."""
        self._answer({"version": version("jupyterhub")})

    def do_POST(self) -> None:
        """Activity is noted."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer({})

    def _answer(self, document: dict[str, str]) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("X-JupyterHub-Version", version("jupyterhub"))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextlib.contextmanager
def answering_hub() -> Iterator[str]:
    """A hub's API where containers on Docker's default bridge reach it; gives its address."""
    server = ThreadingHTTPServer((bridge_gateway(), 0), HubAnswers)
    threading.Thread(target=server.serve_forever, daemon=True, name="hub").start()
    try:
        yield f"http://{server.server_address[0]!s}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def environment(hub: str) -> dict[str, str]:
    """What a hub puts into the environment of a single-user server (JupyterHub 6.1, `Spawner.get_env`)."""
    return {
        "JUPYTERHUB_API_TOKEN": "bench",
        "JUPYTERHUB_API_URL": f"{hub}/hub/api",
        "JUPYTERHUB_ACTIVITY_URL": f"{hub}/hub/api/users/bench/activity",
        "JUPYTERHUB_BASE_URL": "/",
        "JUPYTERHUB_CLIENT_ID": "jupyterhub-user-bench",
        "JUPYTERHUB_HOST": "",
        "JUPYTERHUB_OAUTH_ACCESS_SCOPES": '["access:servers!user=bench"]',
        "JUPYTERHUB_OAUTH_CALLBACK_URL": "/user/bench/oauth_callback",
        "JUPYTERHUB_SERVER_NAME": "",
        "JUPYTERHUB_SERVICE_PREFIX": "/user/bench/",
        "JUPYTERHUB_SERVICE_URL": f"http://0.0.0.0:{PORT}/user/bench/",
        "JUPYTERHUB_USER": "bench",
    }


def plain_image(client: docker.DockerClient) -> str:
    """Builds the plain half if its inputs changed; returns its name. SetupError if that can't be done."""
    table = read_table()
    lab = next(image for image in table.images if image.name == "lab-base")
    reference, base = f"{PLAIN}:{lab.tag}", table.base.reference
    text = pin((lab.folder / lab.lock).read_text(), "jupyterhub", version("jupyterhub"))
    lock = Lock(lab.name, text)
    parts = (inputs_of(client, base) or "", text, PLAIN_DOCKERFILE.read_text())
    inputs = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    with step(f"image {reference}") as current:
        if inputs_of(client, reference) != inputs:
            probed = run(client, base, ["python3", "-c", PROBE], network_mode="none").split()
            wheels = wheelhouse(Stock(CACHE), lock, Target(*probed), current)
            context: list[Path | tuple[str, Path | bytes]] = [
                PLAIN_DOCKERFILE, ("wheels", wheels), ("requirements.lock", text.encode()),
            ]  # fmt: skip
            build(client, context, reference, ({"BASE": base}, {INPUTS_LABEL: inputs}), current)
    return reference


def answer_seconds(client: docker.DockerClient, image: str, hub: str) -> float:
    """Seconds from `docker start` to the first 200 of `/api`; the container is gone afterwards."""
    container = client.containers.create(
        image, environment=environment(hub), cap_drop=["ALL"], security_opt=["no-new-privileges"]
    )
    try:
        begin = time.perf_counter()
        container.start()
        container.reload()
        _wait(container, container.attrs["NetworkSettings"]["Networks"]["bridge"]["IPAddress"])
        return time.perf_counter() - begin
    finally:
        container.remove(force=True, v=True)


def _wait(container: Container, address: str) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection(address, PORT, timeout=LIMIT_SECONDS)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", "/user/bench/api")
            if connection.getresponse().status == 200:
                return
        time.sleep(POLL_SECONDS)
    raise RuntimeError(f"the server did not answer:\n{container.logs(tail=30).decode(errors='replace')}")


def pairs(client: docker.DockerClient, images: tuple[str, str], count: int) -> list[tuple[float, float]]:
    """Seconds of plain and ours, `count` pairs, after one pair that warms up."""
    measured = []
    with answering_hub() as hub:
        for number in range(count + 1):
            order = images if number % 2 else images[::-1]
            taken = {image: answer_seconds(client, image, hub) for image in order}
            if number:
                measured.append((taken[images[0]], taken[images[1]]))
    return measured


def show(measured: list[tuple[float, float]], names: tuple[str, str]) -> None:
    """Prints p50 and p95 of both halves, of the ratio within a pair, and the ratio of the medians."""
    plain, ours = zip(*measured, strict=True)
    ratios = [mine / other for other, mine in measured]
    table = Table("docker start to the first answer", "pairs", "p50", "p95", "least", "most")
    for name, values, unit in ((names[0], plain, " s"), (names[1], ours, " s"), ("ours/plain", ratios, "")):
        cells = (statistics.median(values), percentile(list(values), 95), min(values), max(values))
        table.add_row(name, str(len(measured)), *(f"{cell:.3f}{unit}" for cell in cells))
    table.add_row("ratio of the p50", "", f"{statistics.median(ours) / statistics.median(plain):.3f}")
    rich.print(table)


def main() -> None:
    """Runs the pairs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--image", default="gpuspawner/lab-base:0.1.0")
    parser.add_argument("--against", default="", help="an image instead of the plain one")
    arguments = parser.parse_args()
    with contextlib.closing(connect()) as client:
        names = (arguments.against or plain_image(client), arguments.image)
        show(pairs(client, names, arguments.pairs), names)


if __name__ == "__main__":
    main()
