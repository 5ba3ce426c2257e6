"""Makes the broker's parts and connects them, a file for each group. `broker.py` starts and ends them."""
