"""Metrics, the guard's records, and pruning of old history."""
