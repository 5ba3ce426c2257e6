"""`python -m gpuspawner.broker`: runs the broker."""

import gc
import sys

gc.disable()  # imports leave no garbage, and looking for it takes a tenth of their time
from .app import main  # noqa: E402

gc.enable()

if __name__ == "__main__":
    sys.exit(main())
