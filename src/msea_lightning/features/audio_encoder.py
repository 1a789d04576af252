"""Frame states of an audio encoder of transformers: HuBERT, WavLM, wav2vec 2.0, Whisper, ...

The states are those of the last layer, before any head. Sound is encoded in chunks, so that memory
does not grow with its length; a chunk knows nothing of its neighbours, and is normalised by itself
where the encoder wants that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from msea_lightning.features.contract import AudioExtractor, FeatureError, Frames
from msea_lightning.features.models import fingerprint, load_encoder

if TYPE_CHECKING:
    import torch

_SHORTEST = 0.1
"""Seconds to which a shorter chunk is filled with zeros, because encoders need some samples."""


class AudioEncoder(AudioExtractor):
    """(L, d) states of the last layer, usually 50 a second.

    Args:
        path: Folder or Hub id of a model of transformers with its feature extractor.
        chunk: Seconds that the encoder sees at a time; at most 30 with Whisper.
        device: Where it computes.
    """

    def __init__(self, *, path: str, chunk: float = 20.0, device: str = "cpu") -> None:
        self._path, self._chunk, self._device = path, chunk, device
        self._loaded: tuple[Any, torch.nn.Module] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """The options alone: each process loads the model itself."""
        return {**self.__dict__, "_loaded": None}

    @property
    def rate(self) -> int:  # type: ignore[override]
        """Samples a second that the encoder was trained on."""
        return int(self._models[0].sampling_rate)

    @property
    def columns(self) -> Sequence[str]:
        """``state0`` on, as many as the encoder is wide."""
        config: Any = self._models[1].config
        return [f"state{index}" for index in range(config.hidden_size)]

    def fingerprints(self) -> dict[str, str]:
        """The hash of the model, where it is in a folder."""
        found = fingerprint(self._path)
        return {} if found is None else {"path": found}

    def extract(self, blocks: Iterable[NDArray[np.float32]]) -> Frames:
        """(L, d) states; none of sound without a sample."""
        size = round(self._chunk * self.rate)
        parts = [self._states(chunk) for chunk in _chunks(blocks, size)]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.columns)), np.float32)

    def _states(self, samples: NDArray[np.float32]) -> Frames:
        """The states of one chunk, without those of what it was filled up with."""
        import torch

        prepare, encoder = self._models
        missing = round(_SHORTEST * self.rate) - len(samples)
        filled = np.pad(samples, (0, max(0, missing)))
        inputs = prepare(filled, sampling_rate=self.rate, return_tensors="pt")
        with torch.inference_mode():
            states = encoder(inputs[prepare.model_input_names[0]].to(self._device))[0][0]
        # Whisper's feature extractor fills everything up to 30 seconds.
        whole = getattr(prepare, "n_samples", len(filled))
        kept = math.ceil(len(states) * len(samples) / max(whole, len(samples)))
        result: Frames = states[:kept].float().cpu().numpy()
        return result

    @property
    def _models(self) -> tuple[Any, torch.nn.Module]:
        """Feature extractor and encoder."""
        if self._loaded is None:
            from transformers import AutoFeatureExtractor, AutoModel

            prepare = load_encoder(AutoFeatureExtractor.from_pretrained, self._path)
            model = load_encoder(AutoModel.from_pretrained, self._path)
            if not getattr(prepare, "sampling_rate", None):
                raise FeatureError(
                    f"path={self._path} is a {type(model).__name__}, which does not read sound. "
                    "Give an audio encoder, such as HuBERT, WavLM or Whisper."
                )
            longest = getattr(prepare, "n_samples", math.inf) / prepare.sampling_rate
            if self._chunk > longest:
                raise FeatureError(
                    f"chunk={self._chunk:g}: {self._path} sees at most {longest:g} seconds at a "
                    f"time. Set chunk={longest:g} or less."
                )
            encoder = model.get_encoder() if model.config.is_encoder_decoder else model
            self._loaded = prepare, encoder.to(self._device).float().eval()
        return self._loaded


def _chunks(blocks: Iterable[NDArray[np.float32]], size: int) -> Iterator[NDArray[np.float32]]:
    """The same samples in chunks of one size; the last one may be shorter."""
    waiting: list[NDArray[np.float32]] = []
    for block in blocks:
        waiting.append(block)
        if sum(map(len, waiting)) >= size:
            joined = np.concatenate(waiting)
            whole = len(joined) // size * size
            yield from np.split(joined[:whole], whole // size)
            waiting = [joined[whole:]]
    rest = np.concatenate(waiting) if waiting else np.zeros(0, np.float32)
    if len(rest):
        yield rest
