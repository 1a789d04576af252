"""From a Hub id or a folder to a language model and its tokenizer."""
