"""Enforces memory quotas from outside the containers."""
