"""Encoders of transformers with random weights, saved as published ones are."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import (
    HubertConfig,
    HubertModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from msea_lightning.features.audio_encoder import AudioEncoder
from msea_lightning.features.contract import FeatureError
from tests.features.clips import tone

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}


def hubert(folder: Path) -> str:
    HubertModel(HubertConfig(**SMALL)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return str(folder)


def wavlm(folder: Path) -> str:
    WavLMModel(WavLMConfig(**SMALL)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return str(folder)


def whisper(folder: Path) -> str:
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "vocab_size": 50}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32}
    tokens = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
    config = WhisperConfig(
        **sizes, **heads, decoder_ffn_dim=32, num_mel_bins=80, **dict.fromkeys(tokens, 1)
    )
    WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("save", "length"), [(hubert, 99 + 99 + 49), (wavlm, 99 + 99 + 49)])
def test_states_of_chunks(save: Callable[[Path], str], length: int, tmp_path: Path) -> None:
    """Two seconds make (32000 - 400) // 320 + 1 states."""
    extractor = AudioEncoder(path=save(tmp_path), chunk=2.0)
    assert extractor.rate == 16000
    samples = tone(5)
    states = extractor.extract([samples])
    assert states.shape == (length, len(extractor.columns)) == (length, 16)
    assert states.dtype == np.float32
    blocks = (samples[begin : begin + 999] for begin in range(0, len(samples), 999))
    assert np.array_equal(extractor.extract(blocks), states)
    alone = AudioEncoder(path=str(tmp_path), chunk=2.0).extract([samples[32000:64000]])
    assert states[99:198] == pytest.approx(alone, abs=1e-5)
    assert extractor.extract([]).shape == (0, 16)
    assert extractor.extract([samples[:5]]).shape == (1, 16)


def test_whispers_padding_is_cut_off(tmp_path: Path) -> None:
    extractor = AudioEncoder(path=whisper(tmp_path), chunk=2.0)
    assert extractor.extract([tone(5)]).shape == (250, 16)
    with pytest.raises(FeatureError, match=r"sees at most 30 seconds at a time\. Set chunk=30"):
        AudioEncoder(path=str(tmp_path), chunk=40.0).extract([tone(1)])


def test_a_model_is_told_by_its_files_and_loaded_by_each_process(tmp_path: Path) -> None:
    one = AudioEncoder(path=hubert(tmp_path / "one"))
    other = AudioEncoder(path=hubert(tmp_path / "other"))
    (first,), (second,) = one.fingerprints().values(), other.fingerprints().values()
    assert first != second
    assert one.fingerprints() == {"path": first}
    copy = pickle.loads(pickle.dumps(one))
    assert np.array_equal(copy.extract([tone(1)]), one.extract([tone(1)]))
    assert AudioEncoder(path="openai/whisper-tiny").fingerprints() == {}


def test_what_is_no_audio_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match="there is no such folder"):
        AudioEncoder(path=str(tmp_path / "nothing")).extract([tone(1)])
    with pytest.raises(FeatureError, match="transformers cannot load it"):
        AudioEncoder(path=str(tmp_path)).extract([tone(1)])
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}
    ViTModel(ViTConfig(**size, intermediate_size=32)).save_pretrained(tmp_path)
    ViTImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(FeatureError, match=r"(does not read sound|cannot load it)"):
        AudioEncoder(path=str(tmp_path)).extract([tone(1)])
