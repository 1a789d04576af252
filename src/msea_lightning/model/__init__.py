"""What is trained: one contract for every model, and the frozen language model with an adapter."""
