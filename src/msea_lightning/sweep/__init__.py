"""Many runs: what is left to do, a process for each, a report at the end."""
