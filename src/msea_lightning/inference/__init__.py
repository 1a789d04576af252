"""Predictions for files: what is read, in which batches, on which machines, what is written."""
