"""Small tools of the starter notebooks: the quota, the device, checking, timing, recording, drawing.

What a notebook teaches stands in the notebook. What would only distract from it stands here, and is
short enough to be read: every function can be opened with `starter.check??` in a cell.
"""

from importlib.util import find_spec

if find_spec("torch") is None:
    raise ModuleNotFoundError(
        "These notebooks need PyTorch, and this image has none: File → Hub Control Panel → Stop My Server, "
        "then start it with the image lab-torch."
    )

from .device import available, choose_device, cpu_cores, pick
from .draw import COLOURS, axes, bars, curves, human_bytes, number, timeline
from .lease import Quota, quota, show_quota
from .magic import needs
from .measure import TOLERANCE, check, check_product, record, results, seconds, wait

__all__ = [
    "COLOURS",
    "TOLERANCE",
    "Quota",
    "available",
    "axes",
    "bars",
    "check",
    "check_product",
    "choose_device",
    "cpu_cores",
    "curves",
    "human_bytes",
    "needs",
    "number",
    "pick",
    "quota",
    "record",
    "results",
    "seconds",
    "show_quota",
    "timeline",
    "wait",
]
