"""What passes between hub and broker."""
