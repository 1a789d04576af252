"""Answers over HTTP: prompts as embeddings, the engines that read them, the server in front."""
