"""The broker as the hub's service, in a hurry: warnings come seconds before an end, and rounds at once.

A program, since the hub starts it.
"""

from __future__ import annotations

import sys

from gpuspawner.broker import app
from gpuspawner.broker.decide.when import idle

from tests.docker.zygote import end_soon

WARNINGS_SECONDS = (6.0, 3.0)

if __name__ == "__main__":
    end_soon(*WARNINGS_SECONDS)
    idle.NOTICE_SECONDS = WARNINGS_SECONDS[1]
    sys.exit(app.main(sys.argv[1:]))
