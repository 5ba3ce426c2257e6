"""My GPU: what one user holds, waits for and may still use."""
