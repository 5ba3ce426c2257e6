"""Holds memory quotas from outside the containers."""
