"""Memory and operations of a run, before it runs."""
