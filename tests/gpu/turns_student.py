"""A program that computes on a GPU, for tests of turns: told what to do by lines on its standard input.

Each line is answered by one JSON object. `steps FILE` writes the time and number of its steps into the file
from a thread of its own, so that others can see from outside when it computes.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import struct
import sys
import threading
import time
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # the same sums in the same order every time
import torch

CLOCK_HZ = 1.7e9
"""About the SM clock of an H100 or H200: `torch.cuda._sleep` counts its cycles."""
COMPARED_STEPS = 100
"""The loss after so many steps of a cell is compared."""


class Student:
    """Some memory on the GPU, and what can be done with it."""

    def __init__(self, gib: float, device: int = 0) -> None:
        torch.manual_seed(os.getpid())
        self.device = torch.device("cuda", device)
        count = int(gib * 8)  # pieces of 128 MiB
        kind = {"device": self.device, "dtype": torch.int64}
        self.pieces = [torch.randint(-(2**40), 2**40, (1 << 24,), **kind) for _ in range(count)]
        self.small = torch.randn(1024, 1024, device=self.device)
        self.running = False

    def sum(self) -> dict[str, Any]:
        """A sum over all memory, weighted by place within each piece."""
        weights = torch.arange(1 << 24, device=self.device, dtype=torch.int64) % 1021
        total = sum(int((piece * weights).sum().item()) * (n + 1) for n, piece in enumerate(self.pieces))
        return {"sum": total % (1 << 62)}

    def steps(self, path: str) -> dict[str, Any]:
        """Small products for ever, each waited for; the file has the last one's time and their number."""
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(file, 4096)
        shown = mmap.mmap(file, 4096)
        os.close(file)
        self.running = True

        def run() -> None:
            number = 0
            while self.running:
                began = time.monotonic()
                self.small = torch.tanh(self.small @ self.small)
                torch.cuda.synchronize(self.device)
                number += 1
                shown[:24] = struct.pack("ddq", began, time.monotonic(), number)

        threading.Thread(target=run, name="steps", daemon=True).start()
        return {}

    def stop(self) -> dict[str, Any]:
        """No more steps."""
        self.running = False
        return {}

    def kernel(self, seconds: str) -> dict[str, Any]:
        """One kernel of about so long, from another thread."""
        began = time.monotonic()

        def run() -> None:
            left = float(seconds) * CLOCK_HZ
            with torch.cuda.stream(torch.cuda.Stream(self.device)):
                torch.cuda._sleep(int(left))
            torch.cuda.synchronize(self.device)
            self.kernel_seconds = time.monotonic() - began

        self.kernel_seconds = -1.0
        threading.Thread(target=run, name="kernel", daemon=True).start()
        time.sleep(0.2)
        return {}

    def kernel_took(self) -> dict[str, Any]:
        """How long it took; -1 while it runs."""
        return {"seconds": self.kernel_seconds}

    def train(self, steps: str) -> dict[str, Any]:
        """Losses of a small training with fixed seeds."""
        torch.manual_seed(7)
        model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
        model = model.to(self.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        inputs = torch.randn(512, 256).to(self.device)
        targets = torch.randint(0, 10, (512,)).to(self.device)
        loss = torch.zeros(())
        for _ in range(int(steps)):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
        return {"loss": loss.item()}

    def cell(self, most: str, seconds: str) -> dict[str, Any]:
        """A training that fills the GPU (5 ms a step on an H100), until either is reached.

        Says when its first step was done, how many there were, and its loss after 100.
        """
        end = time.monotonic() + float(seconds)  # from the order on, also while it waits for its turn
        torch.manual_seed(7)
        kind = {"device": self.device, "dtype": torch.bfloat16}
        layers = torch.nn.Linear(4096, 8192, **kind), torch.nn.ReLU(), torch.nn.Linear(8192, 4096, **kind)
        model = torch.nn.Sequential(*layers)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        inputs, targets = torch.randn(8192, 4096, **kind), torch.randn(8192, 4096, **kind)
        first, kept, number = 0.0, 0.0, 0
        while number < int(most) and (number == 0 or time.monotonic() < end):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            number += 1
            if number == 1 or number % 5 == 0:  # as a loop that prints its loss
                kept = loss.item() if number <= COMPARED_STEPS else kept
                torch.cuda.synchronize(self.device)
                first = first or time.monotonic()
        return {"first": first, "steps": number, "loss": kept}

    def managed(self) -> dict[str, Any]:
        """256 MiB of managed memory, touched by the GPU."""
        cuda = ctypes.CDLL("libcuda.so.1")
        pointer = ctypes.c_uint64()
        code = cuda.cuMemAllocManaged(ctypes.byref(pointer), ctypes.c_size_t(256 << 20), 1)
        if code == 0:
            code = cuda.cuMemsetD8_v2(pointer, 7, ctypes.c_size_t(256 << 20))
            torch.cuda.synchronize(self.device)
        return {"code": code}

    def peers(self, rank: str, port: str) -> dict[str, Any]:
        """One of two members of a group of NCCL; the other one is another process, on another GPU."""
        import torch.distributed as dist

        dist.init_process_group("nccl", f"tcp://127.0.0.1:{port}", rank=int(rank), world_size=2)
        return self.reduce()

    def reduce(self) -> dict[str, Any]:
        """A sum over both members."""
        import torch.distributed as dist

        part = torch.full((1 << 24,), 1.0, device=self.device)
        dist.all_reduce(part)
        torch.cuda.synchronize(self.device)
        return {"total": float(part.sum().item())}

    def fork(self) -> dict[str, Any]:
        """A child without exec, as a DataLoader's worker; it sleeps until it is killed."""
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
            os._exit(0)
        self.child = pid
        return {"pid": pid}

    def kill_child(self) -> dict[str, Any]:
        """Ends it."""
        os.kill(self.child, 9)
        os.waitpid(self.child, 0)
        return {}


def main() -> None:
    student: Student | None = None
    if sys.argv[1] != "later":
        student = Student(float(sys.argv[1]))
    print(json.dumps({"pid": os.getpid(), **(student.sum() if student else {})}), flush=True)
    for line in sys.stdin:
        word, *arguments = line.split()
        began = time.monotonic()
        if word == "begin":
            student = Student(float(arguments[0]))
            answer = student.sum()
        else:
            answer = getattr(student, word)(*arguments)
        print(json.dumps({"began": began, "at": time.monotonic(), **answer}), flush=True)


if __name__ == "__main__":
    main()
