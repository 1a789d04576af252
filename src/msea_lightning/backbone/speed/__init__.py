"""What is computed once or not at all; no result changes."""
