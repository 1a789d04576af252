"""The search for good options: what is tried, the study that proposes it, and its runs."""
