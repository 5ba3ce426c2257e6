"""What the broker answers, and to whom."""
