"""Times each callback of the hub's event loop, below the hub's settings; writes down those of 50 ms or more.

Processor time of the loop's thread, in seconds, a line each, into $GPUSPAWNER_TEST_CALLBACKS: what else the
machine does is not the hub's.
"""

import asyncio
import os
import time
from pathlib import Path

file = Path(os.environ["GPUSPAWNER_TEST_CALLBACKS"])
run = asyncio.events.Handle._run


def timed(handle):
    before = time.thread_time()
    run(handle)
    if (took := time.thread_time() - before) >= 0.05:
        with file.open("a") as lines:
            lines.write(f"{took:.3f} {handle!r}\n")


if asyncio.events._get_running_loop() is not None:  # the broker reads this file, too, before its loop runs
    asyncio.events.Handle._run = timed
