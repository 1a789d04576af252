"""Feature standardisation: zero mean and unit variance per feature.

Raw features of mixed scales (-12 to 376 in CMU-MOSI's audio) train badly. The statistics come from
the training part only and travel with the weights. The paper's data sets go without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from msea_lightning.adapter.contract import AdapterError

_MODALITIES = ("audio", "vision")


class FeatureStandardizer(nn.Module):
    """Subtracts the mean of each feature and divides by its standard deviation.

    Its state dict is exactly ``audio_mean``, ``audio_std``, ``vision_mean`` and ``vision_std``,
    float32, (da,) and (dv,), or (0,) for a modality without statistics, which passes unchanged.

    Args:
        statistics: "audio" and "vision" to (mean, standard deviation), each (features,). A feature
            whose deviation is zero, or below what float32 can tell from its mean, is only centred.

    Raises:
        AdapterError: if the statistics name another modality, differ in length, or are negative
            or not finite.
    """

    audio_mean: Tensor
    audio_std: Tensor
    vision_mean: Tensor
    vision_std: Tensor

    def __init__(self, statistics: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None) -> None:
        super().__init__()
        statistics = {} if statistics is None else statistics
        unknown = sorted(set(statistics) - set(_MODALITIES))
        if unknown:
            raise AdapterError(
                f"feature statistics of {', '.join(unknown)}: known are {', '.join(_MODALITIES)}."
            )
        for name in _MODALITIES:
            mean, std = (
                np.asarray(values, dtype=np.float64) for values in statistics.get(name, ([], []))
            )
            if mean.ndim != 1 or mean.shape != std.shape:
                raise AdapterError(
                    f"the {name} statistics have a mean of shape {mean.shape} and a standard "
                    f"deviation of shape {std.shape}: give one of each per feature."
                )
            broken = np.flatnonzero(~np.isfinite(mean) | ~np.isfinite(std) | (std < 0))
            if len(broken):
                first = broken[0]
                raise AdapterError(
                    f"the {name} statistics of {len(broken)} features are negative or not finite, "
                    f"the first is feature {first} with mean {mean[first]} and standard deviation "
                    f"{std[first]}: repair the features (dataset.repair=zero) or leave "
                    "standardisation off (dataset.standardize=false)."
                )
            # Rounding noise around a constant is no signal: dividing by it would magnify it.
            resolution = np.finfo(np.float32)
            constant = std <= np.maximum(resolution.eps * np.abs(mean), resolution.tiny)
            self.register_buffer(f"{name}_mean", torch.tensor(mean, dtype=torch.float32))
            self.register_buffer(
                f"{name}_std", torch.tensor(np.where(constant, 1.0, std), dtype=torch.float32)
            )

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any]) -> FeatureStandardizer:
        """The standardizer that a state dict was saved from, with sizes taken from it.

        Raises:
            AdapterError: if a key is missing or unknown.
        """
        expected = {f"{name}_{part}" for name in _MODALITIES for part in ("mean", "std")}
        if set(state_dict) != expected:
            raise AdapterError(
                f"feature statistics hold {sorted(state_dict)}, but {sorted(expected)} are needed."
            )
        return cls(
            {
                name: tuple(
                    state_dict[f"{name}_{part}"].detach().cpu().numpy() for part in ("mean", "std")
                )
                for name in _MODALITIES
            }
        )

    def forward(
        self,
        audio: Tensor | None,
        audio_lengths: Tensor,
        vision: Tensor | None,
        vision_lengths: Tensor,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Standardised features with zeros beyond each length.

        Args:
            audio: (B, La, da) float32, or None where no utterance has audio.
            audio_lengths: (B,) int, frames of each utterance, on any device.
            vision: (B, Lv, dv) float32, or None.
            vision_lengths: (B,) int.

        Returns:
            ``(audio, vision)`` of the same shapes; the very same tensors where there are no
            statistics.

        Raises:
            AdapterError: if the features per frame differ from those of the statistics.
        """
        return (
            _standardize("audio", audio, audio_lengths, self.audio_mean, self.audio_std),
            _standardize("vision", vision, vision_lengths, self.vision_mean, self.vision_std),
        )


def _standardize(
    name: str, frames: Tensor | None, lengths: Tensor, mean: Tensor, std: Tensor
) -> Tensor | None:
    if frames is None or len(mean) == 0:
        return frames
    if frames.shape[-1] != len(mean):
        raise AdapterError(
            f"{name} has {frames.shape[-1]} features per frame, but its statistics were taken "
            f"over {len(mean)}: give the features that the run was trained on."
        )
    positions = torch.arange(frames.shape[1], device=frames.device)
    real = positions[None, :] < lengths.to(frames.device, non_blocking=True)[:, None]
    return ((frames - mean) / std).masked_fill(~real[:, :, None], 0.0)
