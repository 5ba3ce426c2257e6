"""The messages between hub and broker, and the client that the hub uses."""
