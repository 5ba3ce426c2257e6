"""Shared types and pure functions, without I/O. Every folder imports them; they import no other folder."""
