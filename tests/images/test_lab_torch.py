"""PyTorch in its lab: it computes, compiles, and says the truth about the GPU."""

from __future__ import annotations

import pytest
from docker.models.containers import Container

from .conftest import Start, output

pytestmark = pytest.mark.docker

PRODUCT = """
import torch
a, b = torch.randn(300, 200, generator=torch.manual_seed(1)), torch.randn(200, 100)
exact = a.double() @ b.double()
print(torch.cuda.is_available(), bool(((a @ b).double() - exact).abs().max() < 1e-3))
"""
COMPILED = """
import torch
f = torch.compile(lambda x: x.sin() + 1)
x = torch.linspace(0, 1, 1000)
print(bool(((f(x) - (x.double().sin() + 1)).abs() < 1e-6).all()))
"""


def test_a_matrix_product_without_a_gpu(start: Start) -> None:
    assert output(start("sleep", "infinity"), "python", "-W", "ignore", "-c", PRODUCT) == "False True\n"


@pytest.mark.slow
def test_torch_compile_has_its_compiler(start: Start) -> None:
    assert output(start("sleep", "infinity"), "python", "-W", "ignore", "-c", COMPILED) == "True\n"


LOADER = """
import torch
from torch.utils.data import DataLoader, Dataset

class Pictures(Dataset):
    def __len__(self):
        return 32
    def __getitem__(self, number):
        return torch.full((3, 1024, 1024), float(number)), number  # 12 MiB

loader = DataLoader(Pictures(), batch_size=4, num_workers=4)
print(sum(int(pictures[:, 0, 0, 0].sum()) for pictures, _ in loader), sum(range(32)))
"""
RANKS = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.full((3_000_000,), dist.get_rank() + 1.0)
dist.all_reduce(total)
if dist.get_rank() == 0:
    print(dist.get_world_size(), total[0].item(), torch.get_num_threads())
dist.destroy_process_group()
"""


def test_a_data_loader_with_four_workers_has_enough_shared_memory(lab: Container) -> None:
    assert output(lab, "python", "-W", "ignore", "-c", LOADER) == "496 496\n"


def test_torchrun_starts_two_processes(lab: Container) -> None:
    output(lab, "sh", "-c", f"cat > /tmp/ranks.py <<'END'\n{RANKS}END")
    said = output(lab, "torchrun", "--standalone", "--nproc-per-node=2", "/tmp/ranks.py")
    assert said.splitlines()[-1] == "2 3.0 2"


def test_numeric_libraries_start_a_thread_for_each_core_that_the_lab_may_use(lab: Container) -> None:
    assert output(lab, "python", "-c", "import torch; print(torch.get_num_threads())") == "2\n"
