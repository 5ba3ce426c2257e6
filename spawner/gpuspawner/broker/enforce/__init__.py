"""Makes the node enforce the leases."""
