"""From the command line to a typed configuration to a job."""
