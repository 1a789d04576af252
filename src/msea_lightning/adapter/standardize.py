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

from msea_lightning.adapter.contract import AdapterError, frame_mask


class FeatureStandardizer(nn.Module):
    """Subtracts the mean of each value of a feature and divides by its standard deviation.

    Its state dict is exactly ``<name>_mean`` and ``<name>_std``, float32, (d,), for each feature
    that it has statistics of. Other features pass unchanged, as the very same tensors.

    Args:
        statistics: Name of each feature to (mean, standard deviation), each (d,). A value whose
            deviation is zero, or below what float32 can tell from its mean, is only centred.
    """

    def __init__(self, statistics: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None) -> None:
        super().__init__()
        self._names = tuple(statistics or {})
        for name, values in (statistics or {}).items():
            mean, std = (np.asarray(value, dtype=np.float64) for value in values)
            # Rounding noise around a constant is no signal: dividing by it would magnify it.
            resolution = np.finfo(np.float32)
            constant = std <= np.maximum(resolution.eps * np.abs(mean), resolution.tiny)
            std = np.where(constant, 1.0, std)
            self.register_buffer(f"{name}_mean", torch.tensor(mean, dtype=torch.float32))
            self.register_buffer(f"{name}_std", torch.tensor(std, dtype=torch.float32))

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor]) -> FeatureStandardizer:
        """The standardizer that a state dict was saved from, with names and sizes taken from it."""
        names = sorted({key.rpartition("_")[0] for key in state_dict})
        expected = {f"{name}_{part}" for name in names for part in ("mean", "std")}
        if set(state_dict) != expected:
            raise AdapterError(
                f"feature statistics hold {sorted(state_dict)}, but {sorted(expected)} are needed."
            )
        # Release 0.1 saved empty statistics of audio and vision where there were none.
        found = [name for name in names if state_dict[f"{name}_mean"].numel()]
        return cls(
            {name: (state_dict[f"{name}_mean"], state_dict[f"{name}_std"]) for name in found}
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # So do its checkpoints.
        for key in [key for key in state_dict if key.startswith(prefix)]:
            if state_dict[key].numel() == 0:
                del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(
        self, features: Mapping[str, tuple[Tensor, Tensor]]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Standardised features with zeros beyond each length.

        Args:
            features: Name of each feature to its values, (B, L, d) float32, and lengths, (B,) int,
                frames of each utterance, on any device.
        """
        return {
            name: (self._standardize(name, values, lengths), lengths)
            for name, (values, lengths) in features.items()
        }

    def _standardize(self, name: str, values: Tensor, lengths: Tensor) -> Tensor:
        if name not in self._names:
            return values
        mean, std = self.get_buffer(f"{name}_mean"), self.get_buffer(f"{name}_std")
        if values.shape[-1] != len(mean):
            raise AdapterError(
                f"{name} has {values.shape[-1]} features per frame, but its statistics were taken "
                f"over {len(mean)}: give the features that the run was trained on."
            )
        mask = frame_mask(values, lengths)
        return ((values - mean) / std).masked_fill(~mask[:, :, None], 0.0)
