"""Who is next and who is served now: the order of those who wait, and how long they will."""
