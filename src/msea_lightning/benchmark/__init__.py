"""What a benchmark runs on: generated data of the sizes of the published data sets."""
