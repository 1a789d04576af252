"""The summary of each picture by an image encoder of transformers: ViT, CLIP, DINOv2, ...

The summary is what the encoder itself pools; the state of its first token (CLS) where it was saved
without the weights for pooling, as those for classification are.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from msea_lightning.features.contract import FeatureError, Frames, Picture, VisionExtractor
from msea_lightning.features.faces.crop import crop
from msea_lightning.features.faces.detector import FaceDetector
from msea_lightning.features.faces.tracking import FaceTracker
from msea_lightning.features.models import fingerprint, load_encoder

if TYPE_CHECKING:
    from PIL.Image import Image

MARGIN = 1.5
"""The crop's side in sides of the detector's box, so that hair and chin are in it."""

SIZE = 256
"""Pixels of a side of the crop, which the image processor brings to the encoder's size."""


class ImageEncoder(VisionExtractor):
    """(L, d) summaries, one a picture.

    Args:
        path: Folder or Hub id of a model of transformers with its image processor.
        crop: The face alone, where one is found; of several, the one that
            :class:`~msea_lightning.features.faces.tracking.FaceTracker` follows. False: the whole
            picture.
        fps: Pictures a second.
        batch: Pictures that the encoder sees at a time.
        device: Where it computes.
    """

    def __init__(
        self,
        *,
        path: str,
        crop: bool = True,
        fps: float = 5.0,
        batch: int = 16,
        device: str = "cpu",
    ) -> None:
        self.fps = fps
        self._path, self._batch, self._device = path, batch, device
        self._detector = FaceDetector() if crop else None
        self._loaded: tuple[Any, Any, bool] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """The options alone: each process loads the model itself."""
        return {**self.__dict__, "_loaded": None}

    @property
    def columns(self) -> Sequence[str]:
        """``state0`` on, as many as the encoder is wide."""
        config: Any = self._models[1].config
        return [f"state{index}" for index in range(config.hidden_size)]

    def fingerprints(self) -> dict[str, str]:
        """The hash of the model, where it is in a folder."""
        found = fingerprint(self._path)
        return {} if found is None else {"path": found}

    def extract(self, pictures: Iterable[Picture]) -> Frames:
        """(L, d) summaries; FeatureError where the encoder or what finds faces is missing."""
        images = self._images(pictures)
        batches = iter(lambda: list(itertools.islice(images, self._batch)), [])
        parts = [self._states(batch) for batch in batches]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.columns)), np.float32)

    def _images(self, pictures: Iterable[Picture]) -> Iterator[Image]:
        """What the encoder sees of each picture."""
        from PIL import Image

        tracker = FaceTracker(self._detector) if self._detector else None
        for picture in pictures:
            image = Image.fromarray(picture.rgb)
            square = tracker(image) if tracker else None
            if square is None:
                yield image
            else:
                yield crop(image, square._replace(side=square.side * MARGIN), SIZE)

    def _states(self, images: list[Image]) -> Frames:
        """(n, d) summaries of n pictures."""
        import torch

        prepare, encoder, pools = self._models
        pixels = prepare(images=images, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            output = encoder(pixels.to(self._device))
        if output.get("pooler_output") is None:
            raise FeatureError(
                f"path={self._path} is a {type(encoder).__name__}, which makes no summary of a "
                "picture. Give an image encoder that does, such as ViT, CLIP or DINOv2."
            )
        states = output.pooler_output if pools else output.last_hidden_state[:, 0]
        result: Frames = states.float().cpu().numpy()
        return result

    @property
    def _models(self) -> tuple[Any, Any, bool]:
        """Image processor, encoder, and whether the encoder's own pooling is used."""
        if self._loaded is None:
            from transformers import AutoImageProcessor, AutoModel

            # Another backend, taken where torchvision is installed, gives slightly other numbers.
            prepare = load_encoder(
                functools.partial(AutoImageProcessor.from_pretrained, backend="pil"), self._path
            )
            model, info = load_encoder(
                functools.partial(AutoModel.from_pretrained, output_loading_info=True), self._path
            )
            encoder = getattr(model, "vision_model", model)  # of one that reads text as well
            lacking = [name for name in info["missing_keys"] if not name.startswith("pooler.")]
            if lacking or encoder.main_input_name != "pixel_values":
                why = (
                    f"lacks the weights {', '.join(lacking[:3])}"
                    if lacking
                    else "reads no pictures"
                )
                raise FeatureError(
                    f"path={self._path}: this {type(model).__name__} {why}. Give an image encoder "
                    "such as ViT, CLIP or DINOv2."
                )
            pools = not info["missing_keys"]
            self._loaded = prepare, encoder.to(self._device).float().eval(), pools
        return self._loaded
