"""A node on another machine: the agent there, the link to it, and what stands for it in the broker."""
