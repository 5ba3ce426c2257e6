"""NVIDIA's MPS: its control program, and a daemon for each sliced GPU."""
