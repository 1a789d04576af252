"""The input sequence of the language model (``prompt``), its labels, and how answers are scored.

Labels and their strings are in ``labels``; the tree of legal answers and decoding in ``answers``.
"""
