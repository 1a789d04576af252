"""The unit of data, the utterance, and a batch of them as the model receives it.

Shape legend: B utterances, La and Lv frames of audio and vision, da and dv features a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Utterance:
    """One utterance as a reader yields it and the store keeps it.

    Attributes:
        id: Unique within the data set.
        text: The words; never empty.
        label: An intensity (MSA) or the name of an emotion (ERC).
        audio: (La, da) float32 features without padding, or None where the modality is absent.
        vision: (Lv, dv) float32 features without padding, or None where the modality is absent.
        group: Video or dialogue that the utterance belongs to.
        speaker: Who speaks.
    """

    id: str
    text: str
    label: float | str
    audio: NDArray[np.float32] | None = None
    vision: NDArray[np.float32] | None = None
    group: str | None = None
    speaker: str | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of utterances on its way to the model.

    Attributes:
        index: (B,) int64, position of each utterance in its split.
        ids: B utterance ids.
        texts: B texts.
        labels: B labels, all floats (MSA) or all strings (ERC).
        audio: (B, La, da) float32, zeros beyond each length; None where the data set has none.
        audio_lengths: (B,) int64 on the CPU, frames of each utterance; 0 where audio is absent.
        vision: (B, Lv, dv) float32, zeros beyond each length; None where the data set has none.
        vision_lengths: (B,) int64 on the CPU, frames of each utterance; 0 where it is absent.
        tokens: B arrays of token ids, uncut, where the data set has been tokenised beforehand.
        step_labels: Labels of all utterances of the optimizer step, where the batch is only a part
            of it: other devices, or the same one before or afterwards, have the rest.
    """

    index: Tensor
    ids: list[str]
    texts: list[str]
    labels: list[float] | list[str]
    audio: Tensor | None
    audio_lengths: Tensor
    vision: Tensor | None
    vision_lengths: Tensor
    tokens: Sequence[NDArray[np.int32]] | None = None
    step_labels: Sequence[float] | Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, *, non_blocking: bool | None = None) -> Batch:
        """The batch with its feature tensors on another device; lengths stay on the CPU.

        Args:
            device: The device.
            non_blocking: Go on before they are there. Where not given, on the way to a GPU alone:
                what comes back would be read before it is there.
        """
        if non_blocking is None:
            non_blocking = torch.device(device).type != "cpu"
        return replace(
            self,
            audio=None if self.audio is None else self.audio.to(device, non_blocking=non_blocking),
            vision=(
                None if self.vision is None else self.vision.to(device, non_blocking=non_blocking)
            ),
        )

    def pin_memory(self) -> Batch:
        """The batch with its feature tensors in page-locked memory (called by the DataLoader)."""
        return replace(
            self,
            audio=None if self.audio is None else self.audio.pin_memory(),
            vision=None if self.vision is None else self.vision.pin_memory(),
        )
