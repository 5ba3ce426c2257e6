"""The page of the servers that hold a GPU and that the hub doesn't know."""
