"""What is kept and counted of what happened."""
