"""The HTTP header of the streamed request for a lease."""

WAITED_HEADER = "X-Waited-Seconds"
"""Seconds since the client first asked for this lease, over all connections, by its monotonic clock.

The broker uses it for the queue's timeout: somebody may set the wall clock, and a restarted broker can't
measure the time before its start.
"""
