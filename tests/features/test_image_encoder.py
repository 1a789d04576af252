from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from msea_lightning.features.contract import FeatureError, Picture
from msea_lightning.features.faces.detector import Faces
from msea_lightning.features.image_encoder import ImageEncoder

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def model(kind: str) -> Any:
    """A small random encoder of a kind."""
    import transformers as hf

    torch.manual_seed(0)
    sizes, text = SMALL | {"intermediate_size": 32}, {"hidden_size": 16, "vocab_size": 50}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "num_hidden_layers": 1}
    return {
        "vit": lambda: hf.ViTModel(hf.ViTConfig(**sizes)),
        "classifier": lambda: hf.ViTForImageClassification(hf.ViTConfig(**sizes)),
        "clip": lambda: hf.CLIPModel(
            hf.CLIPConfig(
                text_config={**text, "num_attention_heads": 2, "intermediate_size": 32},
                vision_config=sizes,
            )
        ),
        "clip_vision": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**sizes)),
        "dinov2": lambda: hf.Dinov2Model(hf.Dinov2Config(**SMALL)),
        "bert": lambda: hf.BertModel(
            hf.BertConfig(**text, num_attention_heads=2, intermediate_size=32)
        ),
        "mae": lambda: hf.ViTMAEModel(hf.ViTMAEConfig(**sizes)),
    }[kind]()


def saved(folder: Path, kind: str) -> str:
    """A folder with such an encoder and an image processor."""
    from transformers import ViTImageProcessor

    model(kind).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def pictures(count: int, height: int = 40, width: int = 60) -> list[Picture]:
    generator = np.random.default_rng(0)
    shape = (height, width, 3)
    return [
        Picture(index / 5, generator.integers(0, 255, shape, np.uint8)) for index in range(count)
    ]


def pixels_of(images: Iterable[Image.Image]) -> torch.Tensor:
    small = [np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)) for image in images]
    values = np.stack(small).transpose(0, 3, 1, 2) / np.float32(255)
    return torch.as_tensor((values - 0.5) / 0.5, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["vit", "clip", "clip_vision", "dinov2"])
def test_summaries_are_what_the_encoder_pools(tmp_path: Path, kind: str) -> None:
    extractor = ImageEncoder(path=saved(tmp_path, kind), crop=False, batch=2)
    seen = pictures(5)
    frames = extractor.extract(iter(seen))
    assert frames.dtype == np.float32
    assert frames.shape == (5, 16) == (5, len(extractor.columns))
    encoder = model(kind).eval()
    with torch.inference_mode():
        pixels = pixels_of(Image.fromarray(picture.rgb) for picture in seen)
        expected = getattr(encoder, "vision_model", encoder)(pixels).pooler_output
    assert frames == pytest.approx(expected.numpy(), abs=1e-5)


def test_without_weights_for_pooling_it_is_the_first_token(tmp_path: Path) -> None:
    extractor = ImageEncoder(path=saved(tmp_path, "classifier"), crop=False)
    seen = pictures(2)
    encoder = model("classifier").eval().vit
    with torch.inference_mode():
        states = encoder(pixels_of(Image.fromarray(p.rgb) for p in seen)).last_hidden_state
    assert extractor.extract(seen) == pytest.approx(states[:, 0].numpy(), abs=1e-5)


def test_the_face_alone_is_seen_where_one_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def detect(image: Image.Image) -> Faces:
        found = image.size == (60, 40)
        box, eyes = np.array([[20.0, 10, 40, 30]]), np.array([[[25.0, 18], [35.0, 18]]])
        points = np.concatenate([eyes, np.zeros((1, 4, 2))], axis=1)
        return Faces(box[:found], points[:found], np.ones(int(found)))

    path = saved(tmp_path, "vit")
    extractor = ImageEncoder(path=path)
    monkeypatch.setattr(extractor, "_detector", detect)
    whole = ImageEncoder(path=path, crop=False)
    without = pictures(1, height=50)
    assert np.array_equal(extractor.extract(without), whole.extract(without))

    blue, red = np.uint8([0, 0, 255]), np.uint8([255, 0, 0])
    picture = np.tile(red, (40, 60, 1))
    picture[4:36, 14:46] = blue  # the box with its margin, 30 pixels around (30, 20), and a border
    seen = extractor.extract([Picture(0.0, picture)])
    alone = whole.extract([Picture(0.0, np.tile(blue, (32, 32, 1)))])
    assert seen == pytest.approx(alone, abs=1e-6)
    assert np.abs(seen - whole.extract([Picture(0.0, picture)])).max() > 1e-3


@pytest.mark.usefixtures("face_networks")
def test_the_face_of_a_photograph_is_seen(tmp_path: Path, photograph: Image.Image) -> None:
    path = saved(tmp_path, "vit")
    seen = ImageEncoder(path=path).extract([Picture(0.0, np.array(photograph))])
    face = photograph.crop((148, 43, 306, 201))  # the detector's box, and half of its side more
    whole = ImageEncoder(path=path, crop=False)
    expected, all_of_it = whole.extract([Picture(0.0, np.array(p)) for p in (face, photograph)])
    assert np.abs(seen - expected).max() < np.abs(all_of_it - expected).max() / 3


def test_batches_of_any_size_give_the_same(tmp_path: Path) -> None:
    path, seen = saved(tmp_path, "dinov2"), pictures(5)
    one, many = (ImageEncoder(path=path, crop=False, batch=size).extract(seen) for size in (1, 3))
    assert one == pytest.approx(many, abs=1e-5)


def test_no_pictures_give_no_frames(tmp_path: Path) -> None:
    assert ImageEncoder(path=saved(tmp_path, "vit")).extract([]).shape == (0, 16)


def test_an_extractor_in_use_is_sent_to_other_processes(tmp_path: Path) -> None:
    extractor, seen = ImageEncoder(path=saved(tmp_path, "vit"), crop=False), pictures(2)
    here = extractor.extract(seen)
    assert np.array_equal(pickle.loads(pickle.dumps(extractor)).extract(seen), here)


def test_other_weights_are_told_apart(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    fingerprints = [
        ImageEncoder(path=saved(folder, kind), crop=False).fingerprints()
        for folder, kind in ((first, "vit"), (second, "dinov2"))
    ]
    assert [list(found) for found in fingerprints] == [["path"], ["path"]]
    assert fingerprints[0] != fingerprints[1]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bert", r"this BertModel reads no pictures\. Give an image encoder"),
        ("mae", r"is a ViTMAEModel, which makes no summary of a picture"),
    ],
)
def test_models_that_summarise_no_pictures_are_refused(
    tmp_path: Path, kind: str, message: str
) -> None:
    extractor = ImageEncoder(path=saved(tmp_path, kind), crop=False)
    with pytest.raises(FeatureError, match=message):
        extractor.extract(pictures(1))


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = saved(tmp_path, "dinov2")
    weights = load_file(tmp_path / "model.safetensors")
    dropped = next(name for name in weights if name.endswith("layernorm.weight"))
    del weights[dropped]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(FeatureError, match=f"this Dinov2Model lacks the weights {dropped}"):
        ImageEncoder(path=path, crop=False).extract(pictures(1))
