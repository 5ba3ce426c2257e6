"""The broker as the hub's service on a machine without a GPU: NVML and the CUDA driver are stand-ins.

A program, since the hub starts it; see `use_scripted_gpus` for what is replaced.
"""

from __future__ import annotations

import os
import sys

from gpuspawner.broker import app

from tests.docker.zygote import use_scripted_gpus
from tests.nvml.scripted import ENVIRONMENT

if __name__ == "__main__":
    use_scripted_gpus(os.environ[ENVIRONMENT])
    sys.exit(app.main(sys.argv[1:]))
