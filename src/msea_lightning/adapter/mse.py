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

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from msea_lightning.adapter.contract import Adapter, AdapterError, checked_frames, own_precision
from msea_lightning.adapter.lstm import LastStateLSTM

_SCALES = (8, 32, 16)
"""Divisors of the text width, in the order of the original implementation."""

_IGNORED = ("LLM.", "language_model.")
"""Where checkpoints of the original implementation keep their frozen language model."""

_PREFIXES = ("module.", "Model.", "weight.")
"""Wrappers around the original's names: DataParallel, its model registry, the golden vectors."""

_TOKEN_PROJECTORS = (
    "mutli_scale_fusion.multi_scale_projector.",
    "mutli_scale_fusion.projector.",
)
"""Told apart by their shapes: one is (D, H), the other (N, 1)."""

_NAMES = {
    "audio_LSTM.rnn.": "audio.lstm.",
    "audio_LSTM.linear.": "audio.proj.",
    "video_LSTM.rnn.": "vision.lstm.",
    "video_LSTM.linear.": "vision.proj.",
    "text_guide_mixer.text_mlp.": "text_proj.",
    "mutli_scale_fusion.scale1.": "scales.0.",
    "mutli_scale_fusion.scale2.": "scales.1.",
    "mutli_scale_fusion.scale3.": "scales.2.",
    "mutli_scale_fusion.integrating.Integrating_layer.0.": "conv.",
    "audio_lstm.": "audio.lstm.",
    "audio_proj.": "audio.proj.",
    "video_lstm.": "vision.lstm.",
    "video_proj.": "vision.proj.",
    "text_proj.": "text_proj.",
    "scale8.": "scales.0.",
    "scale32.": "scales.1.",
    "scale16.": "scales.2.",
    "conv.": "conv.",
    "proj_up.": "proj_up.",
    "proj_tokens.": "proj_tokens.",
}
"""Name in the original implementation, or in the golden vectors, to the name here."""


class ModalityBranch(nn.Module):
    """Summarises one modality's frames and projects the summary to the mixer's width (Eq. 3).

    Args:
        name: "audio" or "vision", for error messages.
        features: Features per frame.
        summary: Width of the summary, that is of the LSTM.
        hidden: Width of the mixer.
        random: Replace the summary by a fixed random vector, drawn now ("w/o A V").
    """

    def __init__(
        self, name: str, features: int, summary: int, hidden: int, *, random: bool
    ) -> None:
        super().__init__()
        self.name = name
        self.features = features
        self.lstm = None if random else LastStateLSTM(features, summary)
        self.summary: Tensor | None
        self.register_buffer("summary", torch.randn(summary) if random else None)
        self.proj = nn.Linear(summary, hidden)

    def forward(self, batch: int, frames: Tensor | None, lengths: Tensor) -> Tensor:
        """One projected summary per utterance.

        Args:
            batch: Number of utterances B.
            frames: (B, L, F) features; frames beyond an utterance's length are never read.
                None where no utterance of the batch has the modality.
            lengths: (B,) frames of each utterance; 0 where the modality is absent. On the
                CPU: elsewhere each call waits for the device.

        Returns:
            (B, H), all zero where the modality is absent.

        Raises:
            AdapterError: if the shapes do not fit, or a length is negative or beyond L.
        """
        if self.lstm is None:
            assert self.summary is not None
            projected_H: Tensor = self.proj(self.summary)
            return projected_H.expand(batch, -1)
        weight = self.proj.weight
        frames_BLF, lengths = checked_frames(
            self.name, self.features, batch, frames, lengths, weight
        )
        absent = lengths == 0
        some_absent = bool(absent.any())
        if some_absent:
            # The LSTM needs at least one frame: an absent modality gets a frame of zeros, and
            # its summary is masked below. So every weight has a gradient, even if it is zero.
            absent_B = absent.to(frames_BLF.device, non_blocking=True)
            frames_BLF = frames_BLF.masked_fill(absent_B[:, None, None], 0.0)
        projected_BH: Tensor = self.proj(self.lstm(frames_BLF, lengths.clamp(min=1)))
        if some_absent:
            projected_BH = projected_BH.masked_fill(absent_B[:, None], 0.0)
        return projected_BH


class MSEAdapter(Adapter):
    """The paper's adapter, with every ablation of its Table 4.

    A part that an option leaves out does not exist: it has no parameters, no keys in the state
    dict and no entry in :meth:`parameter_counts`. Weights start as PyTorch's own layers do.

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
    ) -> None:
        super().__init__(
            {
                "text_dim": text_dim,
                "audio_dim": audio_dim,
                "vision_dim": vision_dim,
                "audio_hidden": audio_hidden,
                "vision_hidden": vision_hidden,
                "pseudo_tokens": pseudo_tokens,
                "hidden": hidden,
                "scales": list(scales),
                "use_audio": use_audio,
                "use_vision": use_vision,
                "use_text": use_text,
                "random_summaries": random_summaries,
                "text_guide": text_guide,
                "multi_scale": multi_scale,
            }
        )
        self.use_text = use_text
        self.pseudo_tokens = pseudo_tokens

        # The order of construction is the original's, so that one seed gives the same weights.
        self.audio = self.vision = None
        if use_audio and audio_dim is not None:
            self.audio = ModalityBranch(
                "audio", audio_dim, audio_hidden, hidden, random=random_summaries
            )
        if use_vision and vision_dim is not None:
            self.vision = ModalityBranch(
                "vision", vision_dim, vision_hidden, hidden, random=random_summaries
            )
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
        self.proj_up = nn.Linear(hidden, text_dim)
        self.proj_tokens = nn.Linear(1, pseudo_tokens)

    def forward(
        self,
        text: Tensor,
        text_mask: Tensor,
        audio: Tensor | None,
        audio_lengths: Tensor,
        vision: Tensor | None,
        vision_lengths: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Pseudo tokens of a batch, and the text unchanged; see :class:`Adapter`.

        The text is averaged over its real tokens; an utterance without any has a mean of zero.

        Returns:
            ``(pseudo_tokens, text)``: (B, pseudo_tokens, text_dim), and the very same text,
            or its first 0 tokens in "w/o T".
        """
        self._check(text, text_mask, audio, vision)
        with own_precision(text.device):
            mixed_BH = self._mix(text, text_mask, audio, audio_lengths, vision, vision_lengths)
            if self.scales is not None and self.conv is not None:
                scales_BHK = torch.stack([scale(mixed_BH) for scale in self.scales], dim=2)
                mixed_BH = self.conv(scales_BHK[:, None])[:, 0, :, 0]
            up_BD = self.proj_up(mixed_BH)
            pseudo_BDN = self.proj_tokens(up_BD[:, :, None])
        return pseudo_BDN.transpose(1, 2), text if self.use_text else text[:, :0]

    def _mix(
        self,
        text: Tensor,
        text_mask: Tensor,
        audio: Tensor | None,
        audio_lengths: Tensor,
        vision: Tensor | None,
        vision_lengths: Tensor,
    ) -> Tensor:
        """Text-guided mixer, Equations 3 and 4: (B, H), zero where every modality is absent."""
        batch = text.shape[0]
        weight = self.proj_up.weight
        summaries: list[Tensor] = []
        if self.audio is not None:
            summaries.append(self.audio(batch, audio, audio_lengths))
        if self.vision is not None:
            summaries.append(self.vision(batch, vision, vision_lengths))
        if self.text_proj is not None:
            mean_BD = masked_mean(text.to(weight.dtype), text_mask)
            text_BH = self.text_proj(mean_BD)
            summaries = [summary_BH * text_BH for summary_BH in summaries]
        if not summaries:
            return weight.new_zeros(batch, weight.shape[1])
        return summaries[0] if len(summaries) == 1 else summaries[0] + summaries[1]

    def parameter_counts(self) -> dict[str, int]:
        """Exact number of trainable parameters by part; their sum is the adapter's size (Table 1).

        The parts are ``audio_lstm``, ``audio_proj``, ``vision_lstm``, ``vision_proj``,
        ``text_proj``, one ``scale<k>`` for each k in ``scales``, ``conv``, ``proj_up`` and
        ``proj_tokens``; parts that do not exist are left out.
        """
        counts: dict[str, int] = {}
        for name, parameter in self.named_parameters():
            head, tail = name.split(".")[:2]
            if head == "scales":
                head = f"scale{self._options['scales'][int(tail)]}"
            elif head in ("audio", "vision"):
                head = f"{head}_{tail}"
            counts[head] = counts.get(head, 0) + parameter.numel()
        return counts

    @classmethod
    def from_original(cls, state_dict: Mapping[str, Tensor]) -> MSEAdapter:
        """An adapter with the weights of one trained by the original implementation.

        Both the names of the original's checkpoints (``Model.audio_LSTM.rnn.weight_ih_l0``) and
        those of the golden vectors (``audio_lstm.weight_ih_l0``) are understood; a leading
        ``module.``, ``Model.`` or ``weight.`` is dropped. All sizes are read from the shapes.
        Tensors of the frozen language model (below ``LLM.`` or ``language_model.``) are ignored.

        Args:
            state_dict: Name to tensor, as ``torch.load(path, weights_only=True)`` or
                ``safetensors.torch.load_file(path)`` gives it.

        Returns:
            The adapter in float32 on the CPU, with its own copy of the weights.

        Raises:
            AdapterError: if weights are missing, unknown or doubled, or shapes are inconsistent.
        """
        weights = _rename(state_dict)
        with torch.device("meta"):
            expected = cls(**_sizes(weights))
        for name, parameter in expected.state_dict().items():
            if weights[name].shape != parameter.shape:
                raise AdapterError(
                    f"the weight '{name}' has shape {tuple(weights[name].shape)}, but the other "
                    f"weights imply {tuple(parameter.shape)}: this is not one checkpoint of the "
                    "original implementation."
                )
        adapter = expected.to_empty(device="cpu")
        adapter.load_state_dict(weights)
        return adapter


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the positions that count (global average pooling of the text, Eq. 3).

    Args:
        values: (B, T, D); what stands at masked positions is never read, not even a NaN.
        mask: (B, T) bool or int, true at the positions that count.

    Returns:
        (B, D), zero where no position counts.
    """
    mask_BT1 = mask.to(torch.bool)[:, :, None]
    total_BD = values.masked_fill(~mask_BT1, 0.0).sum(dim=1)
    return total_BD / mask_BT1.sum(dim=1).clamp(min=1)


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


def _rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter's weights under the names used here; refuses missing and unknown names."""
    weights: dict[str, Tensor] = {}
    unknown, doubled = [], []
    for original, tensor in state_dict.items():
        name = original
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        if name.startswith(_IGNORED):
            continue
        renamed = _translate(name, state_dict, original)
        if renamed not in _ORIGINAL_KEYS or not isinstance(tensor, Tensor):
            unknown.append(original)
        elif renamed in weights:
            doubled.append(original)
        else:
            weights[renamed] = tensor
    if unknown or doubled:
        raise AdapterError(
            f"the checkpoint holds {_listed('unknown', unknown)}"
            f"{' and ' if unknown and doubled else ''}{_listed('doubled', doubled)}: only "
            "checkpoints of the unchanged original adapter (single-layer, one-directional LSTMs) "
            f"can be read; its language model is skipped below {' and '.join(_IGNORED)}."
        )
    missing = sorted(_ORIGINAL_KEYS - weights.keys())
    if missing:
        raise AdapterError(
            f"the checkpoint lacks {_listed('needed', missing)} (names as they are used here): "
            "give the whole state dict of the original model, for example "
            "torch.load(path, weights_only=True)."
        )
    return weights


def _translate(name: str, state_dict: Mapping[str, Tensor], original: str) -> str | None:
    for prefix, ours in _NAMES.items():
        if name.startswith(prefix):
            return ours + name.removeprefix(prefix)
    for prefix in _TOKEN_PROJECTORS:
        if name.startswith(prefix):
            leaf = name.removeprefix(prefix)
            weight = state_dict.get(original.removesuffix(leaf) + "weight")
            makes_tokens = weight is not None and weight.dim() == 2 and weight.shape[1] == 1
            return ("proj_tokens." if makes_tokens else "proj_up.") + leaf
    return None


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The adapter's arguments from the shapes of its weights."""
    matrices = ("audio.lstm.weight_ih_l0", "vision.lstm.weight_ih_l0", "text_proj.weight")
    for name in (*matrices, "proj_tokens.weight"):
        if weights[name].dim() != 2:
            raise AdapterError(
                f"the weight '{name}' has shape {tuple(weights[name].shape)}, but a matrix is "
                "needed: this is not a checkpoint of the original implementation."
            )
    hidden, text_dim = weights["text_proj.weight"].shape
    return {
        "text_dim": text_dim,
        "audio_dim": weights["audio.lstm.weight_ih_l0"].shape[1],
        "vision_dim": weights["vision.lstm.weight_ih_l0"].shape[1],
        "audio_hidden": max(1, weights["audio.lstm.weight_ih_l0"].shape[0] // 4),
        "vision_hidden": max(1, weights["vision.lstm.weight_ih_l0"].shape[0] // 4),
        "pseudo_tokens": weights["proj_tokens.weight"].shape[0],
        "hidden": hidden,
    }


def _listed(what: str, names: Sequence[str]) -> str:
    """``3 unknown weights (a, b, c)``, at most eight of them named; empty for none."""
    if not names:
        return ""
    more = ", ..." if len(names) > 8 else ""
    plural = "s" if len(names) > 1 else ""
    return f"{len(names)} {what} weight{plural} ({', '.join(names[:8])}{more})"


def _keys(parts: Iterable[str]) -> frozenset[str]:
    lstm = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    return frozenset(
        f"{part}.{leaf}"
        for part in parts
        for leaf in (lstm if part.endswith(".lstm") else ("weight", "bias"))
    )


_ORIGINAL_KEYS = _keys(
    [f"{modality}.{part}" for modality in ("audio", "vision") for part in ("lstm", "proj")]
    + [f"scales.{scale}.{layer}" for scale in range(len(_SCALES)) for layer in (0, 2)]
    + ["text_proj", "conv", "proj_up", "proj_tokens"]
)
"""The state dict keys of an adapter without ablation and with the original's three scales."""
