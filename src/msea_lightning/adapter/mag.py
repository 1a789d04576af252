"""The Multimodal Adaptation Gate, MAG (Rahman et al. 2020), in front of a frozen language model.

Every token's embedding z is shifted by the audio a and vision v of its time::

    g_a = relu(W_ga [a; z] + b_ga)      g_v = relu(W_gv [v; z] + b_gv)
    h   = g_a * (W_a a + b_a) + g_v * (W_v v + b_v)
    z'  = dropout(LayerNorm(z + min(|z| / |h| * beta, 1) * h))

The paper of the MSE-Adapter reports it in front of a frozen ChatGLM3 in its Tables 5 and 10.

Shape suffixes:
    B utterances, T text tokens, L frames of one modality, D width of the language model
    (``text_dim``), F features per frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from msea_lightning.adapter.contract import Modality, TextAdapter

_SMALLEST = 1e-6
"""Smallest norm of a shift that is divided by."""


class ShiftBranch(nn.Module):
    """One modality's part of the shift: a map of its features, gated by features and token."""

    def __init__(self, features: int, text_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(features + text_dim, text_dim)
        self.map = nn.Linear(features, text_dim)

    def forward(self, features: Tensor, text: Tensor) -> Tensor:
        """(B, T, D) shift, from (B, T, F) features and (B, T, D) embeddings of the tokens."""
        gate_BTD = functional.relu(self.gate(torch.cat([features, text], dim=-1)))
        shift_BTD: Tensor = gate_BTD * self.map(features)
        return shift_BTD


class MAGAdapter(TextAdapter):
    """Shifts the embeddings of the text.

    What the papers fix: the formulas above. The biases are those of MAG's published implementation
    and give the 34.47 M parameters of Table 5: 34,471,936 for a text width of 4096 and MOSEI's 74
    audio and 35 vision features. (MAG's paper writes a single bias b_h for the whole shift, which
    is 34,467,840 and so 34.47 M too.) ``beta=1`` is the published implementation's; the paper of
    the MSE-Adapter does not say which values it used. LayerNorm starts with a gain of one, though
    a frozen language model may know its own embeddings at another scale.

    What we chose:

    - Unaligned frames are brought to the text's length without parameters, see :func:`align`. The
      MSE-Adapter's paper has word-aligned features of MOSEI, which need none either, and aligns
      those of the other data sets by an MLP of a size that it does not report.
    - ``dropout=0.1``. In front of a frozen language model, which was not trained with half of an
      embedding dropped, the published 0.5 is too much.
    - The shift is applied to the embeddings that enter the language model, whose layers are left
      as they are.

    The other arguments, and what they raise, are those of :class:`~.contract.TextAdapter`.

    Args:
        beta: Longest shift in multiples of the token's own norm.
        dropout: Share of an embedding's numbers that training drops.
    """

    def __init__(
        self,
        text_dim: int,
        audio_dim: int | None,
        vision_dim: int | None,
        beta: float = 1.0,
        dropout: float = 0.1,
        *,
        use_audio: bool = True,
        use_vision: bool = True,
    ) -> None:
        super().__init__(locals(), partial(ShiftBranch, text_dim=text_dim))
        self.beta = beta
        self.norm = nn.LayerNorm(text_dim)
        self.dropout = nn.Dropout(dropout)

    def _change(self, text: Tensor, mask: Tensor, modalities: Sequence[Modality]) -> Tensor:
        shift_BTD = torch.zeros_like(text)
        for modality in modalities:
            lengths_B = modality.lengths.to(text.device, non_blocking=True)
            aligned_BTF = align(modality.zeroed, lengths_B, mask)
            # The biases would shift the text of an utterance without the modality, too.
            absent_B11 = (lengths_B == 0)[:, None, None]
            shift_BTD = shift_BTD + modality.branch(aligned_BTF, text).masked_fill(absent_B11, 0.0)
        norm_BT1 = shift_BTD.norm(dim=-1, keepdim=True).clamp(min=_SMALLEST)
        ratio_BT1 = text.norm(dim=-1, keepdim=True) / norm_BT1
        shifted_BTD = text + (ratio_BT1 * self.beta).clamp(max=1.0) * shift_BTD
        adapted_BTD: Tensor = self.dropout(self.norm(shifted_BTD))
        return adapted_BTD


def align(frames: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
    """Brings frames to the text's length: each token gets the mean of its share of the time.

    The L frames of an utterance fill its time, and its n real tokens share that time equally: token
    t lasts from t/n to (t+1)/n, frame l from l/L to (l+1)/L, and a frame counts for a token as long
    as both last. So n frames for n tokens are left as they are. It depends on nothing but the
    utterance.

    Args:
        frames: (B, L, F) features, finite also beyond each length.
        lengths: (B,) int64 frames of each utterance, 0 or more, on the frames' device.
        mask: (B, T) bool, where tokens are real.

    Returns:
        (B, T, F) features, zero where an utterance has no frames, undefined at padding.
    """
    tokens_B11 = mask.sum(dim=1)[:, None, None]
    lengths_B11 = lengths[:, None, None]
    token_BT1 = (mask.cumsum(dim=1) - 1)[:, :, None]
    frame_L = torch.arange(frames.shape[1], device=frames.device)
    # In units of 1 / (n L), so that all are whole numbers.
    begin = torch.maximum(token_BT1 * lengths_B11, frame_L * tokens_B11)
    end = torch.minimum((token_BT1 + 1) * lengths_B11, (frame_L + 1) * tokens_B11)
    shares_BTL = (end - begin).clamp(min=0) / lengths_B11.clamp(min=1)
    return shares_BTL.to(frames.dtype) @ frames
