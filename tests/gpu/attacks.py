"""Attacks on the quota of a slice, as a student could type them into a notebook.

Each is Python for a process of its own in the lab (its GPU memory would otherwise be the kernel's), with the
environment that the student gives it. `GRAB` takes memory in pieces of 256 MiB and says how it went.
"""

from __future__ import annotations

from dataclasses import dataclass, field

GRAB = """
import os, subprocess, sys, time
def grab(gib, hold=6.0):
    import torch
    kept = []
    try:
        for _ in range(int(gib * 4)):
            kept.append(torch.ones(1 << 28, dtype=torch.uint8, device="cuda"))
    except Exception as error:
        print(type(error).__name__, flush=True)
    torch.cuda.synchronize()
    print(f"has {len(kept) / 4} GiB", flush=True)
    time.sleep(hold)
"""
MANAGED = """
import ctypes, time
cuda = ctypes.CDLL("libcuda.so.1")
context, pointer = ctypes.c_void_p(), ctypes.c_uint64()
cuda.cuInit(0); cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0); cuda.cuCtxSetCurrent(context)
size = 12 << 30
code = cuda.cuMemAllocManaged(ctypes.byref(pointer), ctypes.c_size_t(size), 1)
print("cuMemAllocManaged", code, flush=True)
if pointer.value:
    print("cuMemsetD8", cuda.cuMemsetD8_v2(pointer, 1, ctypes.c_size_t(size)), cuda.cuCtxSynchronize())
time.sleep(6)
"""
PERCENT = """
import torch
print("SMs", torch.cuda.get_device_properties(0).multi_processor_count)
"""
CONTROL = """
import os, subprocess
program = "/usr/local/nvidia/bin/nvidia-cuda-mps-control"
memory, percent = "set_default_device_pinned_mem_limit 0 70G", "set_default_active_thread_percentage 100"
for command in (memory, percent, "quit -t 1"):
    done = subprocess.run([program], input=command, text=True, capture_output=True, timeout=20)
    print(done.returncode, (done.stdout + done.stderr).strip()[:80], flush=True)
"""
CHILD = """
if len(sys.argv) == 1:
    code = open("/proc/self/cmdline").read().split("\\0")[2]
    subprocess.Popen([sys.executable, "-c", code, "child"])
grab(6, 10)
"""
FORKS = """
children = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        grab(4, 10)
        os._exit(0)
    children.append(pid)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
"""
BURSTS = """
import time, torch
for _ in range(30):
    x = torch.ones(20 << 30, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    time.sleep(0.3)
    del x
    torch.cuda.empty_cache()
    time.sleep(0.7)
    print(".", end="", flush=True)
"""
HIDDEN = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), file=open("/tmp/hidden", "w"), flush=True)
        grab(20, 20)
    os._exit(0)
time.sleep(14)
try:
    state = open(f"/proc/{open('/tmp/hidden').read().strip()}/stat").read().rsplit(")", 1)[1].split()[0]
except FileNotFoundError:
    state = "gone"
print("the hidden process", "has ended" if state in ("Z", "gone") else "lives")
"""
CREATE = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
"""PyTorch then takes memory with CUDA's virtual memory calls instead of cudaMalloc."""
NO_LIMIT = {"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "garbage"}
"""On driver 580 this throws the daemon's own memory limit off (docs/measurements.md)."""


@dataclass(frozen=True)
class Attack:
    """`code` in a process of its own with `environment` on top, for `seconds` at most."""

    name: str
    code: str
    environment: dict[str, str] = field(default_factory=dict)
    seconds: float = 20.0


ATTACKS = (
    Attack("20 GiB, environment left alone", GRAB + "grab(20, 3)"),
    Attack("limit raised", GRAB + "grab(20)", {"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=40G"}),
    Attack("limit lowered", GRAB + "grab(20, 2)", {"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=2G"}),
    Attack("limit for two devices", GRAB + "grab(20)", {"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=2G,1=40G"}),
    Attack("limit of another device", GRAB + "grab(20)", {"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "1=40G"}),
    Attack("limit malformed", GRAB + "grab(20)", NO_LIMIT),
    Attack("percentage raised", PERCENT, {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "100"}),
    Attack("percentage lowered", PERCENT, {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "5"}),
    Attack("20 GiB by cuMemCreate", GRAB + "grab(20)", CREATE),
    Attack("20 GiB by cuMemCreate, limit malformed", GRAB + "grab(20)", CREATE | NO_LIMIT),
    Attack("MPS pipe elsewhere", GRAB + "grab(20)", {"CUDA_MPS_PIPE_DIRECTORY": "/nowhere"}),
    Attack("MPS pipe elsewhere, 1 GiB", GRAB + "grab(1, 10)", {"CUDA_MPS_PIPE_DIRECTORY": "/nowhere"}),
    Attack("parent and child, 6 GiB each", GRAB + CHILD, seconds=25),
    Attack("three forks, 4 GiB each", GRAB + FORKS, seconds=25),
    Attack("managed memory, 12 GiB", MANAGED),
    Attack("control commands", CONTROL, seconds=70),
    Attack("bursts of 20 GiB, 0.3 s in each 1 s", BURSTS, NO_LIMIT, 40),
    Attack("hidden behind a double fork", GRAB + HIDDEN, NO_LIMIT, 30),
)

ILLEGAL_ADDRESS = '''
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
ptx = b""".version 7.0
.target sm_70
.address_size 64
.visible .entry bad() {
  .reg .b64 %a; .reg .b32 %v;
  mov.u64 %a, 16; mov.u32 %v, 1; st.global.u32 [%a], %v; ret;
}
"""
context, module, function = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
cuda.cuInit(0); cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0); cuda.cuCtxSetCurrent(context)
print("load", cuda.cuModuleLoadData(ctypes.byref(module), ptx))
print("get", cuda.cuModuleGetFunction(ctypes.byref(function), module, b"bad"))
print("launch", cuda.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, None, None, None))
print("synchronize", cuda.cuCtxSynchronize())
'''
"""A store to address 16: CUDA error 700 (illegal address) at the synchronization."""
