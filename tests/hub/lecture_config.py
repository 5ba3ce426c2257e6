"""Times each callback of the hub's event loop, below the hub's settings; writes down those of 50 ms or more.

Processor time of the loop's thread, in seconds, a line each, into $GPUSPAWNER_TEST_CALLBACKS: what else the
machine does is not the hub's. The second number is the part of Python's garbage collection in it.
"""

import asyncio
import gc
import os
import time
from pathlib import Path

file = Path(os.environ["GPUSPAWNER_TEST_CALLBACKS"])
run = asyncio.events.Handle._run
collecting = {"began": 0.0, "seconds": 0.0}


def collected(phase, _):
    now = time.thread_time()
    if phase == "start":
        collecting["began"] = now
    else:
        collecting["seconds"] += now - collecting["began"]


def timed(handle):
    collecting["seconds"] = 0.0
    before = time.thread_time()
    run(handle)
    if (took := time.thread_time() - before) >= 0.05:
        with file.open("a") as lines:
            lines.write(f"{took:.3f} {collecting['seconds']:.3f} {handle!r}\n")


if asyncio.events._get_running_loop() is not None:  # the broker reads this file, too, before its loop runs
    asyncio.events.Handle._run = timed
    gc.callbacks.append(collected)
