"""The contract of all adapters, and the checks of their inputs.

Shape suffixes:
    B utterances, T text tokens, L frames of one modality, D width of the language model
    (``text_dim``), F features per frame, N pseudo tokens.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from msea_lightning.config.errors import UserError


class AdapterError(UserError):
    """An adapter that cannot be built or loaded, or inputs that do not fit it."""


class Adapter(nn.Module, ABC):
    """A trainable plugin in front of a frozen language model.

    Args:
        arguments: ``locals()`` of the constructor, that is its arguments by name, among them
            ``text_dim``, ``audio_dim`` and ``vision_dim``.

    Attributes:
        use_text: False where the language model reads no text.
        changes_text: Whether the language model reads other embeddings of the text than its own.
        pseudo_tokens: Number N of pseudo tokens; 0 where there are none.
        anchored: Whether pseudo tokens take the places of the task prompt's last tokens.
        audio: Audio encoder; None where the adapter reads none.
        vision: Vision encoder; None where the adapter reads none.

    Raises:
        AdapterError: if a size is not positive.
    """

    use_text: bool = True
    changes_text: ClassVar[bool] = False
    pseudo_tokens: int = 0
    anchored: bool = False
    audio: nn.Module | None
    vision: nn.Module | None

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        self._options: dict[str, Any] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in arguments.items()
            if name not in ("self", "__class__")
        }
        for name, size in self._options.items():
            for value in size if isinstance(size, list) else [size]:
                if type(value) is int and value < 1:
                    raise AdapterError(f"{name}={size}: sizes of an adapter are 1 or more.")

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
            ``(pseudo_tokens, text)``: (B, N, D), or None; and the text
            embeddings (B, T, D), the very same tensor where they are unchanged, (B, 0, D) where the
            language model reads no text.

        Raises:
            AdapterError: if a shape does not fit the others or the sizes of the adapter, or if a
                length is negative or beyond the frames that there are.
        """
        self._check_text(text, text_mask)
        dtype = next((weight.dtype for weight in self.parameters()), text.dtype)
        modalities = []
        for name, branch, frames, lengths in (
            ("audio", self.audio, audio, audio_lengths),
            ("vision", self.vision, vision, vision_lengths),
        ):
            self._check_frames(name, len(text), frames, lengths)
            if branch is not None:
                if frames is None or frames.shape[1] == 0:
                    frames = text.new_zeros(len(text), 1, self._options[f"{name}_dim"])
                lengths = lengths.to("cpu", torch.int64)
                modalities.append(Modality(branch, frames.to(dtype), lengths))
        # The device "meta" has no autocast.
        kind = "cpu" if text.device.type == "meta" else text.device.type
        with torch.autocast(kind, enabled=False):
            return self._adapt(text, text_mask.to(torch.bool), modalities)

    @abstractmethod
    def _adapt(
        self, text: Tensor, mask: Tensor, modalities: Sequence[Modality]
    ) -> tuple[Tensor | None, Tensor]:
        """What :meth:`forward` returns, from inputs that have been checked.

        ``text`` is (B, T, D) of any dtype, ``mask`` (B, T) bool, True at real tokens; modalities
        are those that the adapter reads.
        """

    def match_embeddings(self, norm: float, anchors: Tensor) -> None:
        """Tells an untrained adapter how the language model's embeddings are.

        Args:
            norm: Their mean norm.
            anchors: (N, D) those of the tokens whose places pseudo tokens take; (0, D) where they
                take none.
        """

    def options(self) -> dict[str, Any]:
        """The constructor arguments as plain values, fit for JSON."""
        return copy.deepcopy(self._options)

    def _check_text(self, text: Tensor, text_mask: Tensor) -> None:
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

    def _check_frames(self, name: str, batch: int, frames: Tensor | None, lengths: Tensor) -> None:
        features = self._options[f"{name}_dim"]
        if lengths.shape != (batch,):
            raise AdapterError(
                f"{name}_lengths has shape {tuple(lengths.shape)}, but the text has {batch} "
                f"utterances: give one length for each, ({batch},)."
            )
        longest = 0 if frames is None else frames.shape[1]
        if frames is not None and frames.shape != (batch, longest, features):
            raise AdapterError(
                f"{name} has shape {tuple(frames.shape)}, but the adapter was built for "
                f"{features or 'no'} {name} features per frame and the text has {batch} "
                f"utterances, that is ({batch}, frames, {features or 0}): give the features that "
                f"it was trained on, or build it with another {name}_dim."
            )
        low, high = map(int, lengths.aminmax())
        if low < 0 or high > longest:
            raise AdapterError(
                f"{name}_lengths ranges from {low} to {high}, but {name} has {longest} frames: "
                f"every length must be between 0 (absent) and {longest}."
            )


class Modality(NamedTuple):
    """One modality of a batch.

    Attributes:
        branch: The part of the adapter that reads it.
        frames: (B, L, F) features in the dtype of the weights; anything beyond each length.
        lengths: (B,) int64 on the CPU, frames of each utterance; 0 where it is absent.
    """

    branch: nn.Module
    frames: Tensor
    lengths: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, L) bool, False at padding."""
        return frame_mask(self.frames, self.lengths)

    @property
    def zeroed(self) -> Tensor:
        """(B, L, F) features with zeros beyond each length."""
        return self.frames.masked_fill(~self.mask[:, :, None], 0.0)


def frame_mask(frames: Tensor, lengths: Tensor) -> Tensor:
    """(B, L) bool, which of the (B, L, F) frames are no padding; lengths are on any device."""
    index_L = torch.arange(frames.shape[1], device=frames.device)
    return index_L < lengths.to(frames.device, non_blocking=True)[:, None]


class TextAdapter(Adapter):
    """An adapter that changes the embeddings of the text and makes no pseudo tokens.

    Args:
        arguments: As for :class:`Adapter`: ``text_dim``, width of the language model's embeddings;
            ``audio_dim`` and ``vision_dim``, features per frame, None where the data set has none;
            ``use_audio`` and ``use_vision``, False where they are left out all the same.
        make_branch: Makes the part that reads a modality, from its number of features.
    """

    changes_text = True

    def __init__(
        self, arguments: Mapping[str, Any], make_branch: Callable[[int], nn.Module]
    ) -> None:
        super().__init__(arguments)
        read = {
            name: arguments[f"{name}_dim"] if arguments[f"use_{name}"] else None
            for name in ("audio", "vision")
        }
        if not any(read.values()):
            found = (
                f"{name}_dim={arguments[f'{name}_dim']} with use_{name}={arguments[f'use_{name}']}"
                for name in read
            )
            raise AdapterError(
                f"there is nothing that could change the text: {', '.join(found)}. Keep a "
                "modality that the data set has, or choose adapter=mse, which learns without any."
            )
        self.audio, self.vision = (
            None if features is None else make_branch(features) for features in read.values()
        )

    def _adapt(
        self, text: Tensor, mask: Tensor, modalities: Sequence[Modality]
    ) -> tuple[None, Tensor]:
        """No pseudo tokens; changed embeddings of the real tokens, the others unchanged."""
        mask_BT1 = mask[:, :, None]
        text_BTD = text.to(next(self.parameters()).dtype)
        changed_BTD = self._change(text_BTD.masked_fill(~mask_BT1, 0.0), mask, modalities)
        return None, torch.where(mask_BT1, changed_BTD, text_BTD)

    @abstractmethod
    def _change(self, text: Tensor, mask: Tensor, modalities: Sequence[Modality]) -> Tensor:
        """The changed embeddings, (B, T, D), of which only real tokens are used.

        ``text`` is zero where ``mask``, (B, T) bool, is False: where there is no real token.
        """
