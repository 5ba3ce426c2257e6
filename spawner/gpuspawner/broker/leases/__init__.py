"""Carries out leases, and keeps ledger, memory and Docker consistent."""
