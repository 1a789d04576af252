"""Feature standardisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from msea_lightning.adapter import AdapterError, FeatureStandardizer

STATISTICS = {
    "audio": (np.array([1.0, -2.0, 5.0]), np.array([2.0, 0.5, 0.0])),
    "vision": (np.array([100.0]), np.array([10.0])),
}


def test_values_and_padding() -> None:
    audio = torch.full((2, 3, 3), float("nan"))
    audio[0, :2] = torch.tensor([[3.0, -2.0, 5.0], [1.0, -3.0, 6.0]])
    vision = torch.tensor([[[90.0]], [[0.0]]])
    lengths = torch.tensor([2, 0]), torch.tensor([1, 0])
    found = FeatureStandardizer(STATISTICS)(
        {"audio": (audio, lengths[0]), "vision": (vision, lengths[1])}
    )
    (found_audio, audio_lengths), (found_vision, _) = found["audio"], found["vision"]
    assert audio_lengths is lengths[0]
    assert found_audio.tolist() == [
        [[1.0, 0.0, 0.0], [0.0, -2.0, 1.0], [0.0, 0.0, 0.0]],
        [[0.0, 0.0, 0.0]] * 3,
    ]
    assert found_vision.tolist() == [[[-1.0]], [[0.0]]]
    assert found_audio.dtype == torch.float32


def test_training_part_gets_mean_zero_and_variance_one() -> None:
    generator = np.random.default_rng(0)
    frames = generator.normal(30.0, [1e-3, 1.0, 400.0], (500, 3))
    standardizer = FeatureStandardizer({"audio": (frames.mean(0), frames.std(0))})
    values = torch.tensor(frames[None], dtype=torch.float32)
    found, _ = standardizer({"audio": (values, torch.tensor([500]))})["audio"]
    # A float32 near 30 is off by up to half an eps of that, which is divided by 1e-3; of 500 values
    # the unbiased deviation is a thousandth larger.
    bound = np.finfo(np.float32).eps * 30 / 1e-3
    np.testing.assert_allclose(found[0].mean(0), 0, atol=bound)
    np.testing.assert_allclose(found[0].std(0), 1, atol=bound + 1e-3)


def test_identity_without_statistics() -> None:
    audio, lengths = torch.randn(2, 3, 4), torch.tensor([3, 1])
    for statistics in (None, {}, {"vision": STATISTICS["vision"]}):
        found = FeatureStandardizer(statistics)({"audio": (audio, lengths)})
        assert found["audio"][0] is audio


def test_state_dict_is_exactly_the_statistics() -> None:
    for statistics in ({}, STATISTICS, {"audio": STATISTICS["audio"]}):
        standardizer = FeatureStandardizer(statistics)
        state = standardizer.state_dict()
        assert set(state) == {f"{name}_{part}" for name in statistics for part in ("mean", "std")}
        assert all(tensor.dtype == torch.float32 for tensor in state.values())
        assert not list(standardizer.parameters())
        again = FeatureStandardizer.from_state_dict(state).state_dict()
        assert all(torch.equal(again[key], state[key]) for key in state)


def test_rounding_noise_is_not_magnified() -> None:
    """A constant 0.1 has a deviation of about 1e-17 in float64: it is centred, not divided."""
    standardizer = FeatureStandardizer({"audio": ([0.1, 0.1], [1e-17, 1e-60])})
    assert standardizer.audio_std.tolist() == [1.0, 1.0]


def test_refuses_other_features() -> None:
    lengths = torch.tensor([1])
    with pytest.raises(AdapterError, match=r"audio has 2 features per frame.*taken over 3"):
        FeatureStandardizer(STATISTICS)({"audio": (torch.zeros(1, 1, 2), lengths)})


def test_refuses_other_keys() -> None:
    with pytest.raises(AdapterError, match=r"hold \['audio_mean'\]"):
        FeatureStandardizer.from_state_dict({"audio_mean": torch.zeros(1)})


def test_any_feature_has_statistics_of_its_own() -> None:
    values, lengths = torch.randn(2, 3, 1), torch.tensor([3, 2])
    statistics = {"text_features": STATISTICS["vision"]}
    found = FeatureStandardizer(statistics)(
        {"text_features": (values, lengths), "audio": (values, lengths)}
    )
    assert list(found) == ["text_features", "audio"]
    torch.testing.assert_close(found["text_features"][0][0], (values[0] - 100) / 10)
    assert found["audio"][0] is values


def test_weights_of_release_0_1_are_read() -> None:
    """They hold audio and vision always, of length 0 where there are no statistics."""
    mean, std = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    empty = torch.zeros(0)
    old = {"audio_mean": mean, "audio_std": std, "vision_mean": empty, "vision_std": empty}
    expected = {"audio_mean": mean, "audio_std": std}
    restored = FeatureStandardizer.from_state_dict(old)
    resumed = FeatureStandardizer({"audio": ([0.0, 0.0], [1.0, 1.0])})
    resumed.load_state_dict(old)
    for standardizer in (restored, resumed):
        state = standardizer.state_dict()
        assert set(state) == set(expected)
        assert all(torch.equal(state[key], expected[key]) for key in expected)
