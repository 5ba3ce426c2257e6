"""`%%needs`: a cell that can't run here is skipped, with a sentence that says why."""

from __future__ import annotations

from IPython import get_ipython

from .device import available
from .lease import quota

_MISSING = {
    "gpu": "a GPU. Start the server with a GPU tier to run it.",
    "multi-gpu": "two or more GPUs in one lease.",
    "fp8": "a GPU of compute capability 8.9 or more (Ada, Hopper, Blackwell).",
    "compiler": "a C++ compiler and Python's headers, which this image doesn't have.",
    "tensorrt": "Torch-TensorRT: start the server with the lab-tensorrt image.",
}

_OF_A_GPU = {"gpu", "multi-gpu", "fp8"}
_SIMULATED = "a GPU. This hub's GPU is simulated, so there is none to run this on; nothing for you to do."


def _lacking(word: str) -> str:
    """What is missing, and what to do; a simulated GPU was chosen already, and no tier has another."""
    return _SIMULATED if word in _OF_A_GPU and quota().kind == "simulated" else _MISSING[word]


class _AlreadyShown(Exception):
    """A cell under `%%needs` failed; its traceback is on the page already."""

    def _render_traceback_(self) -> list[str]:
        return []


def needs(line: str, cell: str) -> None:
    """`%%needs gpu`: run the cell if what it needs is here, else say what is missing and go on."""
    missing = [word for word in line.split() if word not in available()]
    if missing:
        print(f"Skipped: this cell needs {_lacking(missing[0])}")
        return
    if not get_ipython().run_cell(cell).success:
        raise _AlreadyShown("the cell failed, see above")


if get_ipython() is not None:
    get_ipython().register_magic_function(needs, "cell")
