"""Leases carried out: ledger, memory and Docker kept in agreement."""
