"""The broker: the process that owns devices and leases."""
