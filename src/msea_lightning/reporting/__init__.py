"""Tables, statistics and charts from run folders, and W&B."""
