"""Raw media to feature sequences: decoding, extractors, transcripts, and tables made of clips."""
