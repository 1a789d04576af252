"""Tests, which mirror the rooms of ``src/msea_lightning``."""

import os

# Before PyTorch is imported, here and in the processes that tests start: what they compute is so
# little that a second thread is waited for longer than it helps, above all on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
