"""For admins: the devices, who holds them, the queue."""
