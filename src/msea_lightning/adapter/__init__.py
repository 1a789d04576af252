"""Adapters: trainable plugins that let a frozen language model read audio and vision.

Every adapter keeps one contract, ``forward(text, text_mask, audio, audio_lengths, vision,
vision_lengths) -> (pseudo_tokens, text)``, described at :class:`Adapter`. A new one is a module
here and an entry in ``options``. Padded frames are masked by ``contract.frame_mask``; the LSTM
of the MSE-Adapter stops before them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msea_lightning.config.lazy import lazy

if TYPE_CHECKING:
    from msea_lightning.adapter.chfn import CHFNAdapter as CHFNAdapter
    from msea_lightning.adapter.contract import Adapter as Adapter
    from msea_lightning.adapter.contract import AdapterError as AdapterError
    from msea_lightning.adapter.mag import MAGAdapter as MAGAdapter
    from msea_lightning.adapter.mse import MSEAdapter as MSEAdapter
    from msea_lightning.adapter.options import ADAPTERS as ADAPTERS
    from msea_lightning.adapter.standardize import FeatureStandardizer as FeatureStandardizer

__getattr__ = lazy(
    __name__,
    {
        "ADAPTERS": "options",
        "Adapter": "contract",
        "AdapterError": "contract",
        "CHFNAdapter": "chfn",
        "FeatureStandardizer": "standardize",
        "MAGAdapter": "mag",
        "MSEAdapter": "mse",
    },
)
