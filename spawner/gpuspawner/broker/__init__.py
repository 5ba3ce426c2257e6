"""The process that owns devices and leases."""
