"""CHFN's adjustment of words by unaligned audio and vision, in front of a frozen language model.

The Cross Hyper-modality Fusion Network (Guo et al. 2022) adjusts the representation of each word by
attention over the whole, unaligned sequence of audio and vision. The paper of
the MSE-Adapter reports it in front of a frozen ChatGLM3 in its Tables 5 and 10.

Shape suffixes:
    B utterances, T text tokens, L frames of audio and vision together, D width of the language
    model (``text_dim``), F features per frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from msea_lightning.adapter.contract import Modality, TextAdapter


class CHFNAdapter(TextAdapter):
    """Adjusts the embeddings of the text by attention to audio and vision.

    With a and v all frames of an utterance, and z the embedding of one of its tokens::

        s  = [W_a a + b_a; W_v v + b_v]                   (the frames of both, one after the other)
        z' = z + softmax((W_q z) (W_k s)^T / sqrt(D)) W_v s

    What the papers fix: every word is adjusted by attention to the whole audio-vision sequence,
    which is not aligned, and the adapter has the 50.79 M parameters of Table 5. Three maps of D x D
    and a projection for each modality are 50,786,304 for a text width of 4096 and MOSEI's 74 audio
    and 35 vision features.

    What we chose, as there is no published implementation:

    - The biases: the projections have some, the maps of the attention have none. Table 5 also
      allows for biases in the maps instead (50,790,400), and for a LayerNorm with (50,794,496) or
      instead of (50,786,304) the biases of the projections.
    - There is no LayerNorm, because a frozen language model expects embeddings at its own scale,
      and no feed-forward layer, for which Table 5 leaves no room.
    - ``value`` starts at zero, so that training starts with the text as the language model knows
      it. One head attends. The order of the frames is not read.

    The arguments, and what they raise, are those of :class:`~.contract.TextAdapter`.
    """

    def __init__(
        self,
        text_dim: int,
        audio_dim: int | None,
        vision_dim: int | None,
        *,
        use_audio: bool = True,
        use_vision: bool = True,
    ) -> None:
        super().__init__(locals(), partial(nn.Linear, out_features=text_dim))
        self.query = nn.Linear(text_dim, text_dim, bias=False)
        self.key = nn.Linear(text_dim, text_dim, bias=False)
        self.value = nn.Linear(text_dim, text_dim, bias=False)
        nn.init.zeros_(self.value.weight)

    def _change(self, text: Tensor, mask: Tensor, modalities: Sequence[Modality]) -> Tensor:
        sequence_BLD = torch.cat([part.branch(part.zeroed) for part in modalities], dim=1)
        mask_B1L = torch.cat([part.mask for part in modalities], dim=1)[:, None, :]
        # The key map is applied to the queries and the value map to the result: there are fewer
        # tokens than frames, so this is the same for a fraction of the time and memory.
        asked_BTD = self.query(text) @ self.key.weight / math.sqrt(text.shape[-1])
        scores_BTL = asked_BTD @ sequence_BLD.mT
        # Not minus infinity: an utterance without any frame would give NaN.
        scores_BTL = scores_BTL.masked_fill(~mask_B1L, torch.finfo(scores_BTL.dtype).min)
        weights_BTL = scores_BTL.softmax(dim=-1).masked_fill(~mask_B1L, 0.0)
        adapted_BTD: Tensor = text + self.value(weights_BTL @ sequence_BLD)
        return adapted_BTD
