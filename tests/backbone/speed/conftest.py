"""Small language models with random weights, of several architectures."""

from __future__ import annotations

import pytest
import torch

from msea_lightning.backbone import FrozenBackbone
from tests.backbone.test_frozen import CONFIGS, random_model


@pytest.fixture(params=list(CONFIGS))
def frozen(request: pytest.FixtureRequest, backbone: FrozenBackbone) -> FrozenBackbone:
    model = random_model(request.param, backbone.tokenizer, dtype=torch.float64)
    return FrozenBackbone(model, backbone.tokenizer, pad_token="<pad>")


@pytest.fixture
def llama(backbone: FrozenBackbone) -> FrozenBackbone:
    return FrozenBackbone(random_model("llama", backbone.tokenizer), backbone.tokenizer)
