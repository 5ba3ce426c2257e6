"""Makes the node hold what the leases say."""
