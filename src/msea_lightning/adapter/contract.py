"""The contract of all adapters, and the checks of their inputs.

Shape suffixes:
    B utterances, T text tokens, L frames of one modality, D width of the language model
    (``text_dim``), F features per frame, N pseudo tokens.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from msea_lightning.config.errors import UserError


class AdapterError(UserError):
    """An adapter that cannot be built or loaded, or inputs that do not fit it."""


class Adapter(nn.Module, ABC):
    """A trainable plugin in front of a frozen language model.

    Args:
        options: The constructor arguments as plain values, among them ``text_dim``,
            ``audio_dim`` and ``vision_dim``.

    Attributes:
        use_text: False where the language model reads no text.
        pseudo_tokens: Number N of pseudo tokens; 0 where the adapter changes the text instead.

    Raises:
        AdapterError: if a size is not positive.
    """

    use_text: bool = True
    pseudo_tokens: int = 0

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__()
        self._options = dict(options)
        for name, size in self._options.items():
            for value in size if isinstance(size, list) else [size]:
                if type(value) is int and value < 1:
                    raise AdapterError(f"{name}={size}: sizes of an adapter are 1 or more.")

    @abstractmethod
    def forward(
        self,
        text: Tensor,
        text_mask: Tensor,
        audio: Tensor | None,
        audio_lengths: Tensor,
        vision: Tensor | None,
        vision_lengths: Tensor,
    ) -> tuple[Tensor | None, Tensor]:
        """Pseudo tokens of a batch, and the text embeddings for the language model.

        Computes in the dtype of its own weights (float32), whatever the dtype of the text, and
        ignores autocast. The result for an utterance does not depend on the rest of the batch or on
        the padding. Every parameter gets a gradient, which may be zero.

        Args:
            text: (B, T, D) the language model's embeddings of the utterances' tokens.
            text_mask: (B, T) bool or int, true at real tokens; the others are never read.
            audio: (B, La, audio_dim) features; frames beyond an utterance's length are never
                read, whatever they hold. None where no utterance has audio.
            audio_lengths: (B,) int on the CPU, frames of each utterance; 0 where the utterance has
                no audio, which then contributes nothing.
            vision: (B, Lv, vision_dim) features, or None; as for audio.
            vision_lengths: (B,) int; as for audio.

        Returns:
            ``(pseudo_tokens, text)``: (B, N, D), read before the text, or None; and the text
            embeddings (B, T, D), the very same tensor where they are unchanged, (B, 0, D) where the
            language model reads no text.

        Raises:
            AdapterError: if a shape does not fit the others or the sizes of the adapter, or if a
                length is negative or beyond the frames that there are.
        """

    def options(self) -> dict[str, Any]:
        """The constructor arguments as plain values, fit for JSON."""
        return copy.deepcopy(self._options)

    def parameter_counts(self) -> dict[str, int]:
        """Exact number of trainable parameters by part; their sum is the adapter's size."""
        counts: dict[str, int] = {}
        for name, parameter in self.named_parameters():
            part = name.rpartition(".")[0].replace(".", "_")
            counts[part] = counts.get(part, 0) + parameter.numel()
        return counts

    def _check(
        self, text: Tensor, text_mask: Tensor, audio: Tensor | None, vision: Tensor | None
    ) -> None:
        text_dim = self._options["text_dim"]
        if text.dim() != 3 or text.shape[2] != text_dim:
            raise AdapterError(
                f"text has shape {tuple(text.shape)}, but the adapter was built for embeddings of "
                f"width {text_dim}, (utterances, tokens, {text_dim}): use the language model that "
                f"it was trained with, or build it with another text_dim."
            )
        if text_mask.shape != text.shape[:2]:
            raise AdapterError(
                f"text_mask has shape {tuple(text_mask.shape)}, but text has "
                f"{tuple(text.shape[:2])} utterances and tokens: give one mask value per token."
            )
        for name, frames in (("audio", audio), ("vision", vision)):
            if frames is not None and self._options[f"{name}_dim"] is None:
                raise AdapterError(
                    f"{name} has shape {tuple(frames.shape)}, but the adapter was built without "
                    f"{name} ({name}_dim=None): give None, or build it with "
                    f"{name}_dim={frames.shape[-1]}."
                )


def own_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Computes in the dtype of the weights, also where autocast is on; "meta" has no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class Modality(NamedTuple):
    """One modality of a batch.

    Attributes:
        branch: The part of the adapter that reads it.
        frames: (B, L, F) features in the adapter's dtype, zero beyond each length.
        real: (B, L) bool, where frames are real.
    """

    branch: nn.Module
    frames: Tensor
    real: Tensor


class TextAdapter(Adapter):
    """An adapter that changes the embeddings of the text and makes no pseudo tokens.

    Args:
        options: As for :class:`Adapter`; with ``use_audio`` and ``use_vision``, which of the
            modalities that the data set has are read.
        make_branch: Makes the part that reads a modality, from its number of features.

    Raises:
        AdapterError: if a size is not positive, or there is neither audio nor vision to read.
    """

    def __init__(self, options: Mapping[str, Any], make_branch: Callable[[int], nn.Module]) -> None:
        super().__init__(options)
        read = {
            name: options[f"{name}_dim"] if options[f"use_{name}"] else None
            for name in ("audio", "vision")
        }
        if not any(read.values()):
            found = (
                f"{name}_dim={options[f'{name}_dim']} with use_{name}={options[f'use_{name}']}"
                for name in read
            )
            raise AdapterError(
                f"there is nothing that could change the text: {', '.join(found)}. Keep a "
                "modality that the data set has, or choose adapter=mse, which learns without any."
            )
        self.audio, self.vision = (
            None if features is None else make_branch(features) for features in read.values()
        )

    def forward(
        self,
        text: Tensor,
        text_mask: Tensor,
        audio: Tensor | None,
        audio_lengths: Tensor,
        vision: Tensor | None,
        vision_lengths: Tensor,
    ) -> tuple[None, Tensor]:
        """No pseudo tokens, and changed embeddings of the real tokens; see :class:`Adapter`.

        Returns:
            ``(None, text)``: (B, T, D) in the dtype of the weights; the other tokens are
            unchanged.
        """
        self._check(text, text_mask, audio, vision)
        weight = next(self.parameters())
        real_BT1 = text_mask.to(torch.bool)[:, :, None]
        text_BTD = text.to(weight.dtype)
        modalities = []
        for name, branch, frames, lengths in (
            ("audio", self.audio, audio, audio_lengths),
            ("vision", self.vision, vision, vision_lengths),
        ):
            if branch is not None:
                features = self._options[f"{name}_dim"]
                checked = checked_frames(name, features, len(text), frames, lengths, weight)
                modalities.append(Modality(branch, *real_frames(*checked)))
        with own_precision(text.device):
            read_BTD = text_BTD.masked_fill(~real_BT1, 0.0)
            adapted_BTD = self._adapt(read_BTD, real_BT1[:, :, 0], modalities)
        return None, torch.where(real_BT1, adapted_BTD, text_BTD)

    @abstractmethod
    def _adapt(self, text: Tensor, real: Tensor, modalities: Sequence[Modality]) -> Tensor:
        """The changed embeddings.

        Args:
            text: (B, T, D) embeddings, zero where there is no real token.
            real: (B, T) bool, where tokens are real.
            modalities: Audio and vision, of which each may be missing.

        Returns:
            (B, T, D), of which only real tokens are used.
        """


def checked_frames(
    name: str, features: int, batch: int, frames: Tensor | None, lengths: Tensor, like: Tensor
) -> tuple[Tensor, Tensor]:
    """The frames of a batch in the adapter's dtype, and their lengths on the CPU.

    Args:
        name: "audio" or "vision", for error messages.
        features: Features F per frame that the adapter was built for.
        batch: Number of utterances B.
        frames: (B, L, F) features, or None.
        lengths: (B,) frames of each utterance.
        like: A tensor of the dtype and on the device that the frames shall have.

    Returns:
        (B, L, F) frames, one frame of zeros where there are none at all; and (B,) int64.

    Raises:
        AdapterError: if the shapes do not fit, or a length is negative or beyond L.
    """
    lengths = lengths.to("cpu", torch.int64)
    if lengths.shape != (batch,):
        raise AdapterError(
            f"{name}_lengths has shape {tuple(lengths.shape)}, but the text has {batch} "
            f"utterances: give one length for each, ({batch},)."
        )
    longest = 0
    if frames is not None:
        if frames.dim() != 3 or frames.shape[0] != batch or frames.shape[2] != features:
            raise AdapterError(
                f"{name} has shape {tuple(frames.shape)}, but the adapter was built for "
                f"{features} {name} features per frame and the text has {batch} "
                f"utterances, that is ({batch}, frames, {features}): give the features "
                f"that it was trained on, or build it with another {name}_dim."
            )
        longest = frames.shape[1]
    low, high = lengths.aminmax() if batch else (lengths.new_zeros(()),) * 2
    if int(low) < 0 or int(high) > longest:
        raise AdapterError(
            f"{name}_lengths ranges from {int(low)} to {int(high)}, but {name} has "
            f"{longest} frames: every length must be between 0 (absent) and {longest}."
        )
    if frames is None or longest == 0:
        return like.new_zeros(batch, 1, features), lengths
    return frames.to(like.dtype), lengths


def real_frames(frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Frames with zeros beyond each length, whatever stood there, and where they are real.

    Args:
        frames: (B, L, F) features.
        lengths: (B,) frames of each utterance, at most L.

    Returns:
        (B, L, F) features and (B, L) bool.
    """
    positions = torch.arange(frames.shape[1], device=frames.device)
    real_BL = positions < lengths.to(frames.device, non_blocking=True)[:, None]
    return frames.masked_fill(~real_BL[:, :, None], 0.0), real_BL
