"""What goes with the streamed request for a lease beside its messages."""

WAITED_HEADER = "X-Waited-Seconds"
"""For how long the client has asked for this lease already, over earlier connections, by its steady clock.

The queue's time ends by it. The wall clock may be set, and a restarted broker has no clock of its own for
it.
"""
