"""What somebody may have: quotas, GPU-hours, what was changed at run time."""
