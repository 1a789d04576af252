"""What is trained: the contract of every model, and the frozen language model with an adapter."""
