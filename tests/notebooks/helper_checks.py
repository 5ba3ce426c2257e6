"""The starters' helper package, where PyTorch is: `python helper_checks.py` in a lab image."""

# There is no pytest in a lab image.
# ruff: noqa: PT008, PT009, PT027
from __future__ import annotations

import contextlib
import io
import json
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import starter
import torch
from IPython.core.interactiveshell import InteractiveShell
from starter import lease as lease_module
from starter import magic as magic_module

LEASE = {
    "id": "0" * 32,
    "user": "ada",
    "server": "",
    "tier": "gpu",
    "mode": "whole",
    "device_uuids": ["GPU-1"],
    "memory_bytes": 80 * 2**30,
    "compute_percent": 100.0,
    "simulated": False,
}


class Properties:
    """What the helper reads of a device's properties."""

    total_memory = 80 * 2**30


def own_quota(lease: object, gpus: int) -> starter.Quota:
    """The quota with this lease file (None: no file) on a machine where PyTorch sees so many GPUs."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as patches:
        path = Path(folder) / "lease.json"
        if lease is not None:
            path.write_text(lease if isinstance(lease, str) else json.dumps(lease))
        for name, value in {
            "device_count": lambda: gpus,
            "get_device_name": lambda index: "H100",
            "get_device_properties": lambda index: Properties,
        }.items():
            patches.enter_context(mock.patch.object(torch.cuda, name, value))
        patches.enter_context(mock.patch.dict("os.environ", clear=True))
        return starter.quota(path)


class TheQuota(unittest.TestCase):
    def test_a_whole_gpu(self) -> None:
        self.assertEqual(
            own_quota(LEASE, 1),
            starter.Quota(
                tier="gpu",
                leased=True,
                mode="whole",
                device_uuids=("GPU-1",),
                memory_bytes=80 * 2**30,
                compute_percent=100.0,
                gpus=("H100",),
                gpu_memory_bytes=80 * 2**30,
            ),
        )
        self.assertEqual((own_quota(LEASE, 1).kind, own_quota(LEASE, 1).mode), ("real", "whole"))

    def test_how_it_is_shared_and_what_keeps_it(self) -> None:
        guard = "a guard outside this container: the program that takes more memory than its share is ended."
        for changes, gpus, mode, kept in (
            ({"mode": "slice"}, 1, "slice", guard),
            ({"mode": "slice", "simulated": True}, 0, "slice", "nothing: the GPU is simulated."),
            ({"mode": "turns"}, 1, "turns", None),
            ({"mode": None}, 1, "unknown", None),
        ):
            lines = dict(lease_module._quota_lines(own_quota(LEASE | changes, gpus)))
            self.assertEqual((lines["Mode"], lines.get("Enforced by")), (mode, kept))
        self.assertNotIn("Mode", dict(lease_module._quota_lines(own_quota(None, 1))))

    def test_what_it_says_without_a_real_gpu(self) -> None:
        simulated = own_quota(LEASE | {"simulated": True}, 0)
        self.assertEqual(
            (simulated.kind, "Nothing to do" in lease_module.advise(simulated)), ("simulated", True)
        )
        absent = own_quota(None, 0)
        self.assertEqual((absent.kind, "GPU tier" in lease_module.advise(absent)), ("absent", True))
        self.assertEqual(lease_module.advise(own_quota(LEASE, 1)), "")

    def test_a_gpu_that_pytorch_does_not_see(self) -> None:
        self.assertRegex(lease_module.advise(own_quota(LEASE, 0)), "CUDA lab image|restart the server")

    def test_a_broken_file_is_told_and_stops_nobody(self) -> None:
        for broken in ("{", "[]", '"gpu"', '{"device_uuids": 5}', '{"memory_bytes": "8G"}'):
            own = own_quota(broken, 0)
            self.assertEqual((own.leased, own.kind), (False, "absent"))
            self.assertIn("restart the server", lease_module.advise(own))

    def test_it_is_shown_in_text_and_escaped_in_html(self) -> None:
        own = own_quota(LEASE | {"tier": "<b>gpu</b>"}, 1)
        with (
            mock.patch.object(lease_module, "quota", lambda: own),
            mock.patch.object(lease_module, "display") as display,
        ):
            starter.show_quota()
        shown = display.call_args.args[0]
        self.assertIn("80 GiB of 80 GiB", shown["text/plain"])
        self.assertIn("no other GPU is visible here", shown["text/plain"])
        self.assertIn("&lt;b&gt;gpu&lt;/b&gt;", shown["text/html"])


class Numbers(unittest.TestCase):
    def test_memory_is_in_powers_of_1024(self) -> None:
        for count, text in (
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (999.9 * 2**20, "1000 MiB"),
            (1023.9 * 2**20, "1 GiB"),
            (80 * 2**30, "80 GiB"),
            (3 * 2**50, "3072 TiB"),
        ):
            self.assertEqual(starter.human_bytes(count), text)


class Checking(unittest.TestCase):
    def setUp(self) -> None:
        torch.manual_seed(0)
        self.a, self.b = torch.randn(64, 80), torch.randn(80, 50)
        self.exact = self.a.double() @ self.b.double()

    def test_right_results_pass_in_each_type(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
                exact = self.a.to(dtype).double() @ self.b.to(dtype).double()
                starter.check((self.a.to(dtype) @ self.b.to(dtype)), exact)
            starter.check_product(self.a @ self.b, self.a, self.b)
            starter.check([1.0, 2.0], torch.tensor([1.0, 2.0], dtype=torch.float64))

    def test_wrong_results_fail(self) -> None:
        one_off = self.a @ self.b
        one_off[3, 4] += 0.01
        endless = self.a @ self.b
        endless[0, 0] = torch.inf
        coarse = (self.a.bfloat16() @ self.b.bfloat16()).float()
        for wrong in (one_off, endless, coarse, 1.001 * self.exact.float(), (self.a @ self.b).T):
            with self.assertRaises(AssertionError):
                starter.check(wrong, self.exact)

    def test_the_reference_must_be_float64(self) -> None:
        with self.assertRaisesRegex(AssertionError, "must be float64"):
            starter.check(self.a, self.a)


class Measuring(unittest.TestCase):
    def test_seconds_is_the_median_after_warming_up(self) -> None:
        clock = iter(
            [0.0, 9.0] + [moment for start in range(1, 6) for moment in (start * 10.0, start * 11.0)]
        )
        calls = []
        with mock.patch("time.perf_counter", lambda: next(clock)):
            took = starter.seconds(lambda: calls.append(1), budget=0, warmup=2)
        self.assertEqual((took, len(calls)), (3.0, 2 + 1 + 5))

    def test_results_are_kept(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()) as said, mock.patch.dict(starter.results, clear=True):
            starter.record("product", 54_812, "GFLOP/s")
            self.assertEqual(starter.results, {"product": {"value": 54812.0, "unit": "GFLOP/s"}})
        self.assertEqual(said.getvalue(), "product: 54,800 GFLOP/s\n")

    def test_cores_are_those_of_the_cgroup(self) -> None:
        for text, cores in (("150000 100000\n", 2), ("max 100000\n", 8), ("1000 100000\n", 1)):
            with (
                mock.patch.object(Path, "read_text", lambda self, text=text: text),
                mock.patch("os.sched_getaffinity", lambda pid: set(range(8))),
            ):
                self.assertEqual(starter.cpu_cores(), cores)


class Needs(unittest.TestCase):
    def setUp(self) -> None:
        self.shell = InteractiveShell.instance()

    def run_cell(self, line: str, cell: str, available: set[str]) -> str:
        with (
            contextlib.redirect_stdout(io.StringIO()) as said,
            mock.patch.object(magic_module, "available", lambda: available),
            mock.patch.object(magic_module, "get_ipython", lambda: self.shell),
        ):
            magic_module.needs(line, cell)
        return said.getvalue()

    def test_a_cell_runs_where_all_is_there(self) -> None:
        self.run_cell("gpu fp8", "answer = 6 * 7", {"gpu", "fp8"})
        self.assertEqual(self.shell.user_ns["answer"], 42)

    def test_a_cell_steps_aside_and_says_why(self) -> None:
        self.shell.user_ns.pop("untouched", None)
        said = self.run_cell("gpu tensorrt", "untouched = 1", {"gpu"})
        self.assertIn("Skipped: this cell needs Torch-TensorRT", said)
        self.assertNotIn("untouched", self.shell.user_ns)

    def test_what_to_do_depends_on_whether_the_gpu_is_simulated(self) -> None:
        for own, says in (
            (starter.Quota(leased=True, simulated=True), "GPU is simulated, so there is none to run this on"),
            (starter.Quota(), "Start the server with a GPU tier"),
        ):
            with mock.patch.object(magic_module, "quota", lambda own=own: own):
                said = self.run_cell("gpu", "1 / 0", set())
                self.assertIn(says, said)
                self.assertEqual("nothing for you to do" in said, own.simulated)
                self.assertIn("Torch-TensorRT", self.run_cell("tensorrt", "1 / 0", set()))

    def test_a_cell_that_fails_fails(self) -> None:
        with self.assertRaises(magic_module._AlreadyShown):
            self.run_cell("gpu", "1 / 0", {"gpu"})


if __name__ == "__main__":
    unittest.main()
