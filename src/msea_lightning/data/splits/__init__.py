"""Held-out parts and training fractions."""
