"""MSE-Adapter: a small trainable plugin that lets a frozen language model read audio and vision."""

__version__ = "0.1.0"
