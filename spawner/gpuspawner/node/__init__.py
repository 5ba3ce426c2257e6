"""The only code that accesses hardware."""
