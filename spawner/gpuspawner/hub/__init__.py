"""The hub's side: everything between a click on "Start" and a running container."""
