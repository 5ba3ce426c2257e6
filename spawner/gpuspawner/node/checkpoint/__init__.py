"""CUDA checkpoint from outside: a container's GPU work is paused, its GPU memory moved to the host's."""
