"""A hub on which each user meets another limit of their quota."""

c = get_config()  # noqa: F821

c.GpuSite.simulated_devices = "3 x H100 80GB"
c.GpuSite.pools = [
    {"name": "class", "mode": "slice", "devices": {"model": "H100", "count": 1}, "slices": 8},
    {"name": "whole"},
]
c.GpuSite.tiers = [
    {"name": "cpu", "title": "CPU"},
    {"name": "gpu", "title": "One GPU", "devices": 1},
    {"name": "big", "title": "Three GPUs", "devices": 3},
    {"name": "slice", "title": "A slice of a GPU", "mode": "slice"},
]
c.GpuSite.quotas = [
    {"user": "tina", "tiers": ["cpu"]},
    {"user": "lea", "leases": 1},
    {"user": "dan", "devices": 1},
    {"user": "sid", "slices": 1},
    {"user": "hugo", "gpu_hours": 0.00001, "session_hours": 4},
    {"user": "zoe", "gpu_hours": 0},
]
