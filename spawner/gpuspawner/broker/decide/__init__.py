"""Decides who may have what, who is next and which device. Pure: no clock, no I/O."""
