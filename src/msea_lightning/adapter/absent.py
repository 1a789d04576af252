"""No adapter: the language model alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from msea_lightning.adapter.contract import Adapter, Modality


class NoAdapter(Adapter):
    """Leaves the text as it is and reads nothing else; it has no parameters.

    With the language model's own head it is the zero-shot model, with a linear readout a linear
    probe of its last state.

    Args:
        text_dim: Width of the language model.
        audio_dim: Audio features per frame, which are not read.
        vision_dim: Vision features per frame, which are not read.
    """

    def __init__(self, text_dim: int, audio_dim: int | None, vision_dim: int | None) -> None:
        super().__init__(locals())
        self.audio = self.vision = None

    def _adapt(
        self, text: Tensor, mask: Tensor, modalities: Sequence[Modality]
    ) -> tuple[None, Tensor]:
        return None, text
