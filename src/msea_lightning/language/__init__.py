"""What the language model reads, and how its answers are picked."""
