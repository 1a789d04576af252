"""The MSE-Adapter of the paper: audio and vision in, pseudo tokens for a frozen language model out.

Two LSTMs summarise the feature sequences, the text-guided mixer (TGM) multiplies the summaries
with the mean text embedding, the multi-scale fusion (MSF) and a projector turn the result into
pseudo tokens (paper, section "MSE-Adapter", Equations 3 to 6).

Shape suffixes:
    B utterances, T text tokens, L frames of one modality, D width of the language model
    (``text_dim``), F features per frame, S width of an LSTM, H width of the mixer (``hidden``),
    K scales, N pseudo tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from msea_lightning.adapter.contract import Adapter, AdapterError, Modality
from msea_lightning.adapter.lstm import LastStateLSTM
from msea_lightning.adapter.options import Normalization
from msea_lightning.adapter.original import NOT_ORIGINAL, check_names, names_in, sizes

_SCALES = (8, 32, 16)
"""Divisors of the text width, in the order of the original implementation."""


class ModalityBranch(nn.Module):
    """Summarises one modality's frames and projects the summary to the mixer's width (Eq. 3).

    With ``random`` the summary is a fixed random vector, drawn now ("w/o A V").
    """

    def __init__(self, features: int, summary: int, hidden: int, *, random: bool) -> None:
        super().__init__()
        self.lstm = None if random else LastStateLSTM(features, summary)
        self.summary: Tensor | None
        self.register_buffer("summary", torch.randn(summary) if random else None)
        self.proj = nn.Linear(summary, hidden)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(B, H) projected summaries, zero where the modality is absent, unless it is random.

        ``frames`` are (B, L, F), ``lengths`` (B,) on the CPU: elsewhere each call would wait for
        the device.
        """
        if self.lstm is None:
            assert self.summary is not None
            projected_H: Tensor = self.proj(self.summary)
            return projected_H.expand(len(lengths), -1)
        absent = lengths == 0
        some_absent = bool(absent.any())
        if some_absent:
            # The LSTM needs at least one frame: an absent modality gets a frame of zeros, and
            # its summary is masked below. So every weight has a gradient, even if it is zero.
            absent_B = absent.to(frames.device, non_blocking=True)
            frames = frames.masked_fill(absent_B[:, None, None], 0.0)
        projected_BH: Tensor = self.proj(self.lstm(frames, lengths.clamp(min=1)))
        if some_absent:
            projected_BH = projected_BH.masked_fill(absent_B[:, None], 0.0)
        return projected_BH


class MSEAdapter(Adapter):
    """The paper's adapter, with every ablation of its Table 4.

    A part that an option leaves out does not exist: it has no parameters and no keys in the state
    dict. Weights start as PyTorch's own layers do.

    Every intermediate is the output of a submodule: ``audio.lstm``, ``audio.proj``,
    ``vision.lstm``, ``vision.proj`` and ``text_proj`` (Eq. 3), ``scales[i]`` (Eq. 5), ``conv``,
    ``proj_up`` and ``proj_tokens`` (Eq. 6).

    Args:
        text_dim: Width of the language model's embeddings.
        audio_dim: Audio features per frame; None where the data set has no audio.
        vision_dim: Vision features per frame; None where the data set has no vision.
        audio_hidden: Width of the audio LSTM.
        vision_hidden: Width of the vision LSTM.
        pseudo_tokens: Number of pseudo tokens.
        hidden: Width of the mixer.
        scales: The hidden sizes of the fusion are ``text_dim // k`` for each k. (The paper's
            formula says h/k; its Table 1 and the original implementation say text_dim/k.)
        use_audio: False leaves out the audio summary ("w/o A").
        use_vision: False leaves out the vision summary ("w/o V").
        use_text: False leaves out the text ("w/o T"): the projected summaries are summed without
            the mixer, and no text is returned.
        random_summaries: True replaces both summaries by fixed random vectors of the same size
            ("w/o A V"), drawn from torch's global generator and saved with the weights. Audio and
            vision are not read at all then, not even which utterances have them.
        text_guide: False sums the projected summaries without the Hadamard product ("w/o TGM").
        multi_scale: False passes the mixer's output straight to the projector ("w/o MSF").
        normalization: See :class:`Normalization`. ``matched`` needs :meth:`match_embeddings`.
        anchored: True makes pseudo tokens shifts of the embeddings that :meth:`match_embeddings`
            tells, those of the task prompt's last tokens; untrained, the shifts are zero.
        token_rank: Vectors R that the pseudo tokens are mixed of; the paper's is 1, with which all
            of them are multiples of one vector, shifted.

    Raises:
        AdapterError: if a size is not positive, if a scale leaves no hidden unit, or if neither
            text nor any other modality is left.
    """

    def __init__(
        self,
        text_dim: int,
        audio_dim: int | None,
        vision_dim: int | None,
        audio_hidden: int,
        vision_hidden: int,
        pseudo_tokens: int,
        hidden: int = 256,
        scales: Sequence[int] = _SCALES,
        *,
        use_audio: bool = True,
        use_vision: bool = True,
        use_text: bool = True,
        random_summaries: bool = False,
        text_guide: bool = True,
        multi_scale: bool = True,
        normalization: Normalization | str = Normalization.none,
        anchored: bool = False,
        token_rank: int = 1,
    ) -> None:
        normalization = Normalization(normalization).value
        super().__init__(locals())
        self.use_text = use_text
        self.pseudo_tokens = pseudo_tokens
        self.anchored = anchored
        self.anchors: Tensor | None
        self.token_scale: Tensor | None
        matched = normalization == Normalization.matched.value
        self.register_buffer("anchors", torch.zeros(pseudo_tokens, text_dim) if anchored else None)
        self.register_buffer("token_scale", torch.ones(()) if matched else None)

        # The order of construction is the original's, so that one seed gives the same weights.
        self.audio: ModalityBranch | None = None
        self.vision: ModalityBranch | None = None
        if use_audio and audio_dim is not None:
            self.audio = ModalityBranch(audio_dim, audio_hidden, hidden, random=random_summaries)
        if use_vision and vision_dim is not None:
            self.vision = ModalityBranch(vision_dim, vision_hidden, hidden, random=random_summaries)
        no_modality = self.audio is None and self.vision is None
        if no_modality and not use_text:
            raise AdapterError(
                f"use_text=false leaves nothing to read: audio_dim={audio_dim} with "
                f"use_audio={use_audio}, vision_dim={vision_dim} with use_vision={use_vision}. "
                "Keep the text, or give features of another modality."
            )
        self.text_proj = None
        if use_text and text_guide and not no_modality:
            self.text_proj = nn.Linear(text_dim, hidden)
        self.scales: nn.ModuleList | None = None
        self.conv = None
        if multi_scale:
            self.scales = nn.ModuleList(_scale(text_dim, hidden, k) for k in scales)
            self.conv = nn.Conv2d(1, 1, kernel_size=(1, len(self.scales)))
        self.proj_up = nn.Linear(hidden, token_rank * text_dim)
        self.proj_tokens = nn.Linear(token_rank, pseudo_tokens)
        if anchored:
            for parameter in self.proj_tokens.parameters():
                nn.init.zeros_(parameter)

    def match_embeddings(self, norm: float, anchors: Tensor) -> None:
        """See the base class."""
        if self.token_scale is not None:
            self.token_scale.fill_(norm / math.sqrt(anchors.shape[1]))
        if self.anchors is not None:
            self.anchors.copy_(anchors)

    def _adapt(
        self, text: Tensor, mask: Tensor, modalities: Sequence[Modality]
    ) -> tuple[Tensor, Tensor]:
        """(B, N, D) pseudo tokens, and the text unchanged, or its first 0 tokens in "w/o T"."""
        # Text-guided mixer, Equations 3 and 4; zero where every modality is absent.
        weight = self.proj_up.weight
        summaries = [branch(frames_BLF, lengths_B) for branch, frames_BLF, lengths_B in modalities]
        if self.token_scale is not None:
            summaries = [_normalized(summary_BH) for summary_BH in summaries]
        if self.text_proj is not None:
            text_BH = self.text_proj(masked_mean(text.to(weight.dtype), mask))
            if self.token_scale is not None:
                text_BH = _normalized(text_BH)
            summaries = [summary_BH * text_BH for summary_BH in summaries]
        mixed_BH = sum(summaries, start=weight.new_zeros(len(text), weight.shape[1]))
        if self.scales is not None and self.conv is not None:
            scales_BHK = torch.stack([scale(mixed_BH) for scale in self.scales], dim=2)
            mixed_BH = self.conv(scales_BHK[:, None])[:, 0, :, 0]
        up_BRD = self.proj_up(mixed_BH).unflatten(1, (self.proj_tokens.in_features, -1))
        if self.anchors is not None:
            if self.token_scale is not None:
                up_BRD = self._scaled(up_BRD)
            pseudo_BND = self.anchors + self._mixed(up_BRD)
        else:
            pseudo_BND = self._mixed(up_BRD)
            if self.token_scale is not None:
                pseudo_BND = self._scaled(pseudo_BND)
        return pseudo_BND, text if self.use_text else text[:, :0]

    def _mixed(self, up_BRD: Tensor) -> Tensor:
        """(B, N, D) of vectors (B, R, D) and shifts of all their numbers (Eq. 6)."""
        pseudo_BND: Tensor = self.proj_tokens(up_BRD.transpose(1, 2)).transpose(1, 2)
        return pseudo_BND

    def _scaled(self, vectors: Tensor) -> Tensor:
        """(..., D) vectors in the norm of the language model's embeddings."""
        assert self.token_scale is not None
        return functional.rms_norm(vectors, vectors.shape[-1:]) * self.token_scale

    @classmethod
    def from_original(cls, state_dict: Mapping[str, Tensor]) -> MSEAdapter:
        """An adapter with the weights of one trained by the original implementation.

        Both the names of the original's checkpoints (``Model.audio_LSTM.rnn.weight_ih_l0``) and
        those of the golden vectors (``audio_lstm.weight_ih_l0``) are understood; a leading
        ``module.``, ``Model.`` or ``weight.`` is dropped. All sizes are read from the shapes.
        Tensors of the frozen language model (below ``LLM.`` or ``language_model.``) are ignored.

        Returns:
            The adapter in float32 on the CPU, with its own copy of the weights.

        Raises:
            AdapterError: if weights are missing or unknown, or shapes are inconsistent.
        """
        names = names_in(state_dict)
        weights = {name: state_dict[original] for name, original in names.items()}
        with torch.device("meta"):
            adapter = cls(**sizes(weights))
        check_names(names, adapter.state_dict())
        adapter.to_empty(device="cpu")
        try:
            adapter.load_state_dict(weights)
        except RuntimeError as error:  # names what is of another shape
            raise AdapterError(f"{NOT_ORIGINAL} {error}") from error
        return adapter


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """(B, D) mean of (B, T, D) values where the mask is true (Eq. 3); zero where it never is."""
    mask_BT1 = mask.to(torch.bool)[:, :, None]
    total_BD = values.masked_fill(~mask_BT1, 0.0).sum(dim=1)
    return total_BD / mask_BT1.sum(dim=1).clamp(min=1)


def _normalized(values: Tensor) -> Tensor:
    """(..., H) values with mean zero and variance one in each row; rows of zeros stay zero."""
    return functional.layer_norm(values, values.shape[-1:])


def _scale(text_dim: int, hidden: int, divisor: int) -> nn.Sequential:
    """One MLP of the multi-scale fusion, (B, H) to (B, H) (Eq. 5)."""
    units = text_dim // divisor
    if units == 0:
        raise AdapterError(
            f"the scale {divisor} leaves {text_dim} // {divisor} = 0 hidden units for a language "
            f"model of width {text_dim}: choose scales of {text_dim} or less, better such that "
            "16 units or more are left."
        )
    return nn.Sequential(nn.Linear(hidden, units), nn.GELU(), nn.Linear(units, hidden))
