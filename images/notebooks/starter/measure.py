"""Checking a result against float64, timing a function, keeping what was measured."""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from .draw import number

TOLERANCE = {
    "float64": 1e-12,
    "float32": 1e-5,
    "tf32": 2e-3,
    "float16": 2e-3,
    "bfloat16": 1.5e-2,
    "float8_e4m3fn": 8e-2,
    "float8_e5m2": 1.6e-1,
}
"""Allowed relative error of a sum of products, by type: some roundings of the inputs, no more."""

results: dict[str, dict] = {}
"""What this notebook measured: name → {"value", "unit"}. Filled by `record`."""


def check(result, reference64, dtype=None, what: str = "result") -> float:
    """Hold a result against its float64 reference; return the relative error, or fail if it is too large.

    Two walls: the error of the whole (root of the sum of squares), and of the worst element, which
    may be off by ten times as much of its own size or of the typical size. `dtype` names the type
    computed in where that isn't the result's own: "tf32", torch.float8_e4m3fn.
    """
    result, reference = _on_cpu(result), _on_cpu(reference64)
    assert reference.dtype == torch.float64, f"the reference must be float64, not {reference.dtype}"
    assert result.shape == reference.shape, (
        f"{what}: shape {tuple(result.shape)}, not {tuple(reference.shape)}"
    )
    name = str(dtype or result.dtype).removeprefix("torch.")
    allowed = TOLERANCE[name]
    difference = result.double() - reference
    assert torch.isfinite(difference).all(), f"{what}: there are infinities or NaNs in it"
    size = reference.norm().item()
    error = difference.norm().item() / size if size else difference.norm().item()
    typical = size / max(1, reference.numel()) ** 0.5
    worst = (difference.abs() / (reference.abs() + typical).clamp(min=1e-300)).max().item()
    assert error <= allowed, f"{what}: relative error {error:.1e}, allowed for {name} is {allowed:.1e}"
    assert worst <= 10 * allowed, (
        f"{what}: one element is off by {worst:.1e}, allowed for {name} is {10 * allowed:.1e}"
    )
    print(f"✓ {what}: relative error {error:.1e} (allowed for {name}: {allowed:.1e})")
    return error


def _on_cpu(values) -> torch.Tensor:
    """A tensor on the CPU from a tensor, an array, or (nested) lists of Python floats, which are float64."""
    return values.detach().cpu() if isinstance(values, torch.Tensor) else torch.from_numpy(np.array(values))


def check_product(c, a, b, dtype=None, what: str = "product") -> float:
    """Check c = a @ b on 32 of its rows, from top to bottom: the whole in float64 would take too long."""
    rows = torch.linspace(0, a.shape[0] - 1, min(32, a.shape[0])).long()
    return check(
        c.detach().cpu()[rows],
        a.detach().cpu()[rows].double() @ b.detach().cpu().double(),
        dtype or c.dtype,
        what,
    )


def seconds(function, budget: float = 0.3, warmup: int = 3, on=None) -> float:
    """The median time of one call: CUDA events on the GPU, `time.perf_counter` on the CPU.

    Warm-up calls go first. Then it is called as often as fits into `budget` seconds, 5 to 200 times.
    `on="cpu"` times CPU code on a machine that has a GPU. Notebook 02 builds this step by step.
    """
    on_gpu = torch.cuda.is_available() and str(on) != "cpu"
    for _ in range(warmup):
        function()
    once = _once(function, on_gpu)
    repeats = int(min(200, max(5, budget / max(once, 1e-7))))
    return statistics.median(_once(function, on_gpu) for _ in range(repeats))


def wait() -> None:
    """Wait until the GPU has worked off its queue; nothing to do on a CPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _once(function, on_gpu: bool) -> float:
    if not on_gpu:
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def record(name: str, value: float, unit: str) -> None:
    """Keep a measured result, print it, and hand it to whoever runs the notebooks as a test."""
    results[name] = {"value": float(value), "unit": unit}
    print(f"{name}: {number(value)} {unit}")
