"""Plugins of which one says how its features are extracted from a clip."""

from __future__ import annotations

from dataclasses import replace

import pytest

from msea_lightning import Plugin, Predictor
from msea_lightning.backbone import FrozenBackbone
from msea_lightning.features.extraction import Extraction, to_json
from msea_lightning.features.options import LogMelOptions


@pytest.fixture
def predictor(plugins: dict[str, Plugin], backbone: FrozenBackbone) -> Predictor:
    """``emotion`` hears clips; ``sentiment`` does not know how."""
    hears = to_json(Extraction(LogMelOptions(mels=12)).facts())
    emotion = plugins["emotion"]
    found = Predictor(backbone)
    found.add(replace(emotion, facts=replace(emotion.facts, features=hears)), "emotion")
    found.add(plugins["sentiment"], "sentiment")
    return found
