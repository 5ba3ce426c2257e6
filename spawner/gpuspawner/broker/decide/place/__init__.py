"""Where a lease can be: the devices, their modes and shares, and which one is taken."""
