"""Adapters: trainable plugins that let a frozen language model read audio and vision.

Every adapter keeps one contract, ``forward(text, text_mask, audio, audio_lengths, vision,
vision_lengths) -> (prefix, text)``, described at :meth:`MSEAdapter.forward`.
"""

from __future__ import annotations

from msea_lightning.adapter.mse import AdapterError, MSEAdapter
from msea_lightning.adapter.standardize import FeatureStandardizer

__all__ = ["AdapterError", "FeatureStandardizer", "MSEAdapter"]
