"""The hub's side: what a click passes before its container runs."""
