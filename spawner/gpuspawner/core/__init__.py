"""Words without I/O: imported by all, importing nobody."""
