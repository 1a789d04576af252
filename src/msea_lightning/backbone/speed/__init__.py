"""What makes the frozen language model faster or smaller without changing its results."""
