"""Texts that are read once: the same states and gradients, from memory and from disk."""

from __future__ import annotations

import json
import logging
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from msea_lightning.backbone import FrozenBackbone
from msea_lightning.backbone.options import CacheDtype
from msea_lightning.backbone.speed.read_once import (
    DiskShelf,
    MemoryShelf,
    ReadOnce,
    Shelf,
    TokenShape,
)
from tests.backbone.test_frozen import assert_same, bound_of

SHARED = [5, 9]
TEXTS = [[5, 9, 3, 17, 8], [5, 9], [5, 9, 21]]
"""What each sequence begins with."""
AFTER = 3
"""Tokens of each sequence that follow."""
GIB = 2**30


def keep(frozen: FrozenBackbone, shelf: Shelf, how: CacheDtype = CacheDtype.exact) -> None:
    shape = TokenShape.of(frozen.recorded(None, [[5]]))
    frozen.read_once = ReadOnce(shelf, how, frozen.dtype, shape)


def fill(frozen: FrozenBackbone, texts: list[list[int]] = TEXTS) -> int:
    """Reads what follows the shared tokens, and publishes it."""
    assert frozen.read_once is not None
    rests = [text[len(SHARED) :] for text in texts]
    compute = partial(frozen.recorded, frozen.cached_prefix(SHARED))
    return frozen.read_once.fill(SHARED, rests, compute)


def after(frozen: FrozenBackbone) -> tuple[Tensor, Tensor]:
    """Embeddings and positions of what follows the texts."""
    ids = torch.tensor([[7, 30, 11], [12, 13, 4], [40, 6, 19]])
    positions = torch.tensor([len(text) for text in TEXTS])[:, None] + torch.arange(AFTER)
    return frozen.embed(ids), positions


def continued(frozen: FrozenBackbone) -> list[Tensor]:
    """States after the texts, and the gradient of what stands there."""
    embedded, positions = after(frozen)
    inputs = embedded.clone().requires_grad_()
    everything = torch.ones(embedded.shape[:2], dtype=torch.bool)
    states = frozen.hidden(inputs, everything, positions, frozen.read(SHARED, TEXTS))
    return [states.detach(), gradient_of(states, inputs)]


def gradient_of(states: Tensor, inputs: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, states.shape[-1], dtype=states.dtype)
    return torch.autograd.grad((states * weights).sum(), inputs)[0]


def whole(frozen: FrozenBackbone) -> list[Tensor]:
    """The same of each whole sequence by itself."""
    embedded, _ = after(frozen)
    found = []
    for text, rest in zip(TEXTS, embedded, strict=True):
        inputs = torch.cat([frozen.embed(torch.tensor(text)), rest])[None].requires_grad_()
        mask = torch.ones(inputs.shape[:2], dtype=torch.bool)
        states = frozen.hidden(inputs, mask, mask.long().cumsum(-1) - 1)
        gradient = gradient_of(states[:, -AFTER:], inputs)
        found.append((states[0, -AFTER:].detach(), gradient[0, -AFTER:]))
    return [torch.stack(parts) for parts in zip(*found, strict=True)]


@pytest.mark.parametrize("where", ["nowhere", "memory", "disk"])
def test_states_and_gradients_are_those_of_whole_sequences(
    frozen: FrozenBackbone, where: str, tmp_path: Path
) -> None:
    assert frozen.caches_rows
    expected = whole(frozen)
    if where != "nowhere":
        keep(frozen, MemoryShelf() if where == "memory" else DiskShelf(tmp_path / "one", GIB))
    for _ in range(2):  # read, and taken from where it is kept
        for found, wanted in zip(continued(frozen), expected, strict=True):
            assert_same(found, wanted, bound_of(frozen))


def test_what_is_filled_does_not_depend_on_the_order_of_the_texts(llama: FrozenBackbone) -> None:
    kept = []
    for texts in (TEXTS, TEXTS[::-1]):
        keep(llama, MemoryShelf())
        assert fill(llama, texts) == 2  # of one text the shared tokens are everything
        assert fill(llama, texts) == 0
        kept.append(llama.read(SHARED, TEXTS))
    for pair in zip(*(found.keys_values for found in kept if found is not None), strict=True):
        assert all(torch.equal(*parts) for parts in zip(*pair, strict=True))


def test_a_sequence_may_end_within_the_shared_tokens(llama: FrozenBackbone) -> None:
    """Of an utterance without words, in front of an empty task prompt."""
    short, whole = llama.read(SHARED, [[5], [5, 9, 3]]), llama.read([], [[5], [5, 9, 3]])
    assert short is not None
    assert whole is not None
    assert short.tokens == whole.tokens == 3
    for pair in zip(short.keys_values, whole.keys_values, strict=True):
        for part, wanted in zip(*pair, strict=True):
            assert_same(part[1], wanted[1], 1e-5)
            assert_same(part[0, :, :1], wanted[0, :, -1:], 1e-5)


def test_texts_after_another_prefix_are_other_texts(llama: FrozenBackbone) -> None:
    keep(llama, MemoryShelf())
    llama.read([5], [[5, 9, 3]])
    found = llama.read([7], [[7, 9, 3]])
    llama.read_once = None
    expected = llama.read([7], [[7, 9, 3]])
    assert found is not None
    assert expected is not None
    for pair in zip(found.keys_values, expected.keys_values, strict=True):
        for part, wanted in zip(*pair, strict=True):
            assert_same(part, wanted, bound_of(llama))


def test_a_text_is_read_once(llama: FrozenBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    read = counted(llama, monkeypatch)
    keep(llama, MemoryShelf())
    for _ in range(3):
        llama.read(SHARED, TEXTS)
    assert read == [[5], [3, 17, 8], [21]]  # the first to see how much a token takes


def counted(frozen: FrozenBackbone, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The texts that a language model reads from now on."""
    read: list[list[int]] = []
    recorded = frozen.recorded

    def noted(prefix: object, rows: list[list[int]]) -> object:
        read.extend(rows)
        return recorded(prefix, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(frozen, "recorded", noted)
    return read


def test_a_later_run_finds_on_the_disk_what_was_published(
    llama: FrozenBackbone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read = counted(llama, monkeypatch)
    keep(llama, DiskShelf(tmp_path / "llama", GIB))
    first = continued(llama)
    keep(llama, DiskShelf(tmp_path / "llama", GIB))
    assert fill(llama) == 2  # nothing was published: what a killed run wrote is not trusted
    keep(llama, DiskShelf(tmp_path / "llama", GIB))
    del read[:]
    for found, before in zip(continued(llama), first, strict=True):
        assert_same(found, before, bound_of(llama))
    assert read == []


@pytest.mark.parametrize("damage", ["bit", "cut", "index", "version"])
def test_what_is_damaged_is_computed_again(
    llama: FrozenBackbone, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "llama"
    keep(llama, DiskShelf(folder, GIB))
    fill(llama)
    expected = continued(llama)
    (data,), (index,) = folder.glob("*.bin"), folder.glob("*.json")
    if damage == "bit":
        content = bytearray(data.read_bytes())
        content[-5] ^= 64
        data.write_bytes(content)
    elif damage == "cut":
        data.write_bytes(data.read_bytes()[:-8])
    elif damage == "index":
        index.write_text(index.read_text()[:-9])
    else:
        index.write_text(json.dumps(json.loads(index.read_text()) | {"version": 99}))
    with caplog.at_level(logging.WARNING):
        keep(llama, DiskShelf(folder, GIB))
        for found, before in zip(continued(llama), expected, strict=True):
            assert_same(found, before, bound_of(llama))
    if damage in ("bit", "index"):
        assert "damaged" in caplog.text


def test_the_oldest_segments_go_when_the_limit_is_reached(
    llama: FrozenBackbone, tmp_path: Path
) -> None:
    for name in ("old", "new"):
        keep(llama, DiskShelf(tmp_path / name, GIB))
        fill(llama)
    size = next((tmp_path / "new").glob("*.bin")).stat().st_size
    DiskShelf(tmp_path / "third", 2 * size + 1).make_room(size)
    assert not list((tmp_path / "old").glob("*.bin"))
    assert list((tmp_path / "new").glob("*.bin"))


def test_files_are_closed_with_the_shelf(llama: FrozenBackbone, tmp_path: Path) -> None:
    for _ in range(2):
        keep(llama, DiskShelf(tmp_path / "llama", GIB))
        fill(llama)
    shelf = DiskShelf(tmp_path / "llama", GIB)
    files = list(shelf._files)
    assert len(files) == 1  # the second found everything
    del shelf
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(files[0])


@pytest.mark.parametrize(
    ("how", "bound"), [(CacheDtype.bfloat16, 2**-8), (CacheDtype.int8, 1 / 120)]
)
def test_smaller_types_are_off_by_their_rounding(
    llama: FrozenBackbone, how: CacheDtype, bound: float
) -> None:
    exact = llama.read(SHARED, TEXTS[:1])
    keep(llama, MemoryShelf(), how)
    found = llama.read(SHARED, TEXTS[:1])
    assert exact is not None
    assert found is not None
    for pair in zip(exact.keys_values, found.keys_values, strict=True):
        for part, rounded in zip(*pair, strict=True):
            largest = part.abs().amax(dim=-1, keepdim=True)
            assert ((part - rounded).abs() <= bound * largest + 1e-6).all()


def test_bytes_are_those_that_are_kept(llama: FrozenBackbone) -> None:
    computed = llama.recorded(None, [[3, 17, 8]])
    shape = TokenShape.of(computed)
    for how in CacheDtype:
        shelf = Sized()
        keep(llama, shelf, how)
        llama.read([], [[3, 17, 8], [4]])  # padded, which is not kept
        assert shelf.sizes == [shape.size(length, how, llama.dtype) for length in (3, 1)]


class Sized(MemoryShelf):
    """Notes how much it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def put(self, key: str, kept: Tensor) -> None:
        self.sizes.append(kept.untyped_storage().nbytes())
        super().put(key, kept)


def test_a_model_that_cannot_continue_from_texts_reads_them_every_time(
    llama: FrozenBackbone,
) -> None:
    llama.caches_rows = False
    found = llama.read(SHARED, TEXTS)
    assert found is not None
    assert found.tokens == len(SHARED)
