"""The broker's API on its unix socket, and what each viewer may see."""
