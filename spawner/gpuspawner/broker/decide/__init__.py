"""Who may have what, who is next, which device: pure, no clock, no I/O."""
