"""Texts that are read once: keys and values of the tokens before the pseudo tokens are kept.

They never change, so that an epoch can take them from memory or disk instead of computing them
again. All texts of a run that are not kept yet are read before it trains, in batches of similar
length. A text that was read among others, by another run that shares the disk, is the same up to
rounding.

On disk the cache of one language model is a folder of segments::

    <name>.bin     what is kept of each text, one after the other
    <name>.json    format version, and of each text its key, offset, bytes and CRC-32

A segment counts once its ``.json`` is there. It is a cache: what is damaged is said and computed
again. Runs that fill it at the same time may compute a text twice; either serves.

Shape legend: B texts, R tokens of the longest one, F values of a token: its keys and values in all
heads of all layers.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import logging
import math
import os
import time
import uuid
import weakref
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from msea_lightning.backbone.options import CacheDtype
from msea_lightning.backbone.speed.prefix_cache import KeysValues, PrefixCache

FORMAT_VERSION = 1

_BATCH = 16
"""Texts that are read together: one by one takes four times as long on a CPU."""

_ABANDONED = 24 * 3600
"""Seconds after which a segment without an index was left by a process that was killed."""

_log = logging.getLogger(__name__)


class TokenShape(NamedTuple):
    """How many keys and values a token has.

    Attributes:
        heads: Heads of each layer.
        widths: Values of a head of each layer, of keys and of values.
    """

    heads: tuple[int, ...]
    widths: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, layers: Sequence[KeysValues]) -> TokenShape:
        """Of what a language model has computed."""
        heads = tuple(keys.shape[1] for keys, _ in layers)
        return cls(heads, tuple((keys.shape[3], values.shape[3]) for keys, values in layers))

    @property
    def sizes(self) -> list[int]:
        """Values of a token's keys and of its values, layer after layer."""
        return [
            heads * width
            for heads, pair in zip(self.heads, self.widths, strict=True)
            for width in pair
        ]

    @property
    def values(self) -> int:
        """F."""
        return sum(self.sizes)

    @property
    def group(self) -> int:
        """Values that share a scale in int8: a head's, where all heads are of one width."""
        return math.gcd(*itertools.chain(*self.widths))

    def size(self, tokens: int, how: CacheDtype, exact: torch.dtype) -> int:
        """Bytes that so many tokens take."""
        scales = 2 * self.values // self.group if how is CacheDtype.int8 else 0
        return tokens * (self.values * stored_dtype(how, exact).itemsize + scales)


def stored_dtype(how: CacheDtype, exact: torch.dtype) -> torch.dtype:
    """The type that numbers are kept in."""
    kept = {CacheDtype.bfloat16: torch.bfloat16, CacheDtype.int8: torch.int8}
    return kept.get(how, exact)


class Shelf(ABC):
    """Where bytes are kept by key, for one thread."""

    @abstractmethod
    def take(self, key: str) -> Tensor | None:
        """(N,) uint8 of a key; None where there is nothing."""

    @abstractmethod
    def put(self, key: str, kept: Tensor) -> None:
        """Keeps (N,) uint8."""

    @abstractmethod
    def make_room(self, size: int) -> None:
        """Prepares for so many bytes that are to be put."""

    @abstractmethod
    def publish(self) -> None:
        """Lets other processes find what was put, where they can."""


class MemoryShelf(Shelf):
    """In memory, as long as the process lives."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, key: str) -> Tensor | None:
        """See the base class."""
        return self._kept.get(key)

    def put(self, key: str, kept: Tensor) -> None:
        """See the base class."""
        self._kept[key] = kept

    def make_room(self, size: int) -> None:
        """Nothing: who fills it knows what memory there is."""

    def publish(self) -> None:
        """Nothing: no other process sees it."""


class _Place(NamedTuple):
    """Where on the disk something lies."""

    file: int
    offset: int
    size: int
    crc: int


class DiskShelf(Shelf):
    """In a folder, for this run and later ones.

    Args:
        folder: The folder of one language model, below one for all of them.
        limit: Bytes that all of them may take together; the segments that were not used for the
            longest time go first, those of this language model last.

    Raises:
        OSError: the folder cannot be written, or has more segments than a process may open.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._places: dict[str, _Place] = {}
        self._checked: set[str] = set()
        self._name = uuid.uuid4().hex
        self._own: dict[str, _Place] = {}
        self._files: list[int] = []
        weakref.finalize(self, _close, self._files)
        folder.mkdir(parents=True, exist_ok=True)
        for index in sorted(folder.glob("*.json")):
            self._open(index)

    def take(self, key: str) -> Tensor | None:
        """See the base class."""
        place = self._places.get(key)
        if place is None:
            return None
        buffer = bytearray(place.size)
        read = os.preadv(place.file, [buffer], place.offset)
        # Once is enough: what was right is read again from the same file.
        if key not in self._checked and (read < place.size or zlib.crc32(buffer) != place.crc):
            _log.warning("%s: a text is damaged and computed again", self._folder)
            del self._places[key]
            return None
        self._checked.add(key)
        return torch.frombuffer(buffer, dtype=torch.uint8)

    def put(self, key: str, kept: Tensor) -> None:
        """See the base class."""
        data = memoryview(kept.numpy().tobytes())
        file = self._segment
        offset = os.lseek(file, 0, os.SEEK_END)
        written = 0
        while written < len(data):  # a write may stop short
            written += os.write(file, data[written:])
        self._own[key] = self._places[key] = _Place(file, offset, len(data), zlib.crc32(data))
        self._checked.add(key)

    def publish(self) -> None:
        """See the base class."""
        if not self._own:
            return
        texts = {key: [one.offset, one.size, one.crc] for key, one in self._own.items()}
        index = self._folder / f"{self._name}.json"
        partial = index.with_suffix(".partial")
        text = json.dumps({"version": FORMAT_VERSION, "texts": texts})
        partial.write_text(text, encoding="utf-8")
        partial.replace(index)

    @property
    def _segment(self) -> int:
        """The file that this process writes."""
        if self._own:
            return next(iter(self._own.values())).file
        self._files.append(
            os.open(self._folder / f"{self._name}.bin", os.O_RDWR | os.O_CREAT, 0o644)
        )
        return self._files[-1]

    def _open(self, index: Path) -> None:
        try:
            found = json.loads(index.read_text(encoding="utf-8"))
            if found["version"] != FORMAT_VERSION:
                return
            data = index.with_suffix(".bin")
            file = os.open(data, os.O_RDONLY)
            self._files.append(file)
            size = os.fstat(file).st_size
            for key, (offset, count, crc) in found["texts"].items():
                if 0 <= offset <= offset + count <= size:
                    self._places[key] = _Place(file, offset, count, crc)
            os.utime(index)
        except FileNotFoundError:  # another process has made room
            return
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                raise  # nothing is damaged
            _log.warning("%s is damaged (%s): its texts are computed again", index, error)

    def make_room(self, size: int) -> None:
        """Removes what killed processes left, and segments until the limit is kept.

        What other processes write just now is counted, and stays.
        """
        segments = []
        total = size
        for data in self._folder.parent.glob("*/*.bin"):
            index = data.with_suffix(".json")
            try:
                found, written = data.stat().st_size, data.stat().st_mtime
                if index.exists():
                    own = data.parent == self._folder
                    segments.append((own, index.stat().st_mtime, found, data, index))
                elif time.time() - written > _ABANDONED:
                    data.unlink()
                    continue
                total += found
            except FileNotFoundError:  # another process makes room too
                continue
        for own, _, found, data, index in sorted(segments):
            if total <= self._limit:
                break
            # Whoever reads it has it open, and goes on reading.
            index.unlink(missing_ok=True)
            data.unlink(missing_ok=True)
            total -= found
            _log.info("%s removed: backbone.cache_limit is reached%s", data, " again" * own)


class ReadOnce:
    """Keeps the keys and values of texts.

    Args:
        shelf: Where they are kept.
        how: In which type.
        exact: The language model's compute dtype.
        shape: How many keys and values a token has.
    """

    def __init__(
        self,
        shelf: Shelf,
        how: CacheDtype,
        exact: torch.dtype,
        shape: TokenShape,
    ) -> None:
        self._shelf, self._how, self._exact, self._shape = shelf, how, exact, shape

    def fill(
        self,
        shared: Sequence[int],
        rows: Collection[Sequence[int]],
        compute: Callable[[Sequence[Sequence[int]]], Sequence[KeysValues]],
    ) -> int:
        """Reads all texts that are not kept yet, and lets other processes find them.

        They are read in batches of similar length that depend on nothing but these texts.

        Args:
            shared: Token ids that all texts follow.
            rows: Token ids of each text; none twice.
            compute: Gives each layer's keys and values of some texts, (B, heads, R, d), padded on
                the left.

        Returns:
            How many texts were read.

        Raises:
            OSError: they cannot be written.
        """
        missing = [
            row for row in rows if row and self._kept(text_key(shared, row), len(row)) is None
        ]
        missing.sort(key=lambda row: (len(row), *row))
        self._shelf.make_room(self._shape.size(sum(map(len, missing)), self._how, self._exact))
        with torch.inference_mode(mode=False), torch.no_grad():
            for start in range(0, len(missing), _BATCH):
                self._read(shared, missing[start : start + _BATCH], compute)
        self._shelf.publish()
        return len(missing)

    def keys_values(
        self,
        shared: Sequence[int],
        rows: Sequence[Sequence[int]],
        compute: Callable[[Sequence[Sequence[int]]], Sequence[KeysValues]],
        device: torch.device,
    ) -> list[KeysValues]:
        """Each layer's keys and values of B texts, (B, heads, R, d), padded on the left.

        Args:
            shared: Token ids that all of them follow.
            rows: Token ids of each text.
            compute: Gives those of some texts, in the same shape; called for those that are not
                kept.
            device: Where they are wanted.
        """
        with torch.inference_mode(mode=False), torch.no_grad():
            real = [row for row in rows if row]
            kept = [self._kept(text_key(shared, row), len(row)) for row in real]
            lacking = [row for row, found in zip(real, kept, strict=True) if found is None]
            if lacking:
                read = iter(self._read(shared, lacking, compute))
                kept = [next(read) if found is None else found for found in kept]
            longest = max(map(len, rows))
            padded = torch.zeros(len(rows), longest, self._shape.values, dtype=self._exact)
            places = [(padded[number], row) for number, row in enumerate(rows) if row]
            for (place, row), found in zip(places, kept, strict=True):
                assert found is not None
                place[longest - len(row) :] = self._restored(found, len(row))
            return _split(padded.to(device, non_blocking=True), self._shape)

    def _kept(self, key: str, tokens: int) -> Tensor | None:
        """What is kept of a text; None where there is nothing, or something else."""
        found = self._shelf.take(key)
        size = self._shape.size(tokens, self._how, self._exact)
        return found if found is not None and len(found) == size else None

    def _read(
        self,
        shared: Sequence[int],
        rows: Sequence[Sequence[int]],
        compute: Callable[[Sequence[Sequence[int]]], Sequence[KeysValues]],
    ) -> list[Tensor]:
        """Reads texts and keeps them; what is kept of each."""
        computed = compute(rows)
        parts = [part.transpose(1, 2).flatten(2) for pair in computed for part in pair]
        values = torch.cat(parts, dim=2).cpu()
        found = []
        for row, own in zip(rows, values, strict=True):
            kept = self._stored(own[len(own) - len(row) :])
            self._shelf.put(text_key(shared, row), kept)
            found.append(kept)
        return found

    def _stored(self, values: Tensor) -> Tensor:
        """(R, F) values as (N,) uint8 of their own, not a part of the batch that was read."""
        if self._how is not CacheDtype.int8:
            kept = values.to(stored_dtype(self._how, self._exact), copy=True)
            return kept.view(torch.uint8).flatten()
        groups = values.float().view(len(values), -1, self._shape.group)
        scales = (groups.abs().amax(dim=2) / 127).clamp(min=1e-7).half()
        whole = (groups / scales.float()[:, :, None]).round().clamp(-127, 127).to(torch.int8)
        parts = (whole.flatten().view(torch.uint8), scales.flatten().view(torch.uint8))
        return torch.cat(parts)

    def _restored(self, kept: Tensor, tokens: int) -> Tensor:
        """(N,) uint8 as (R, F) values."""
        if self._how is not CacheDtype.int8:
            return kept.view(stored_dtype(self._how, self._exact)).view(tokens, -1)
        count = tokens * self._shape.values
        whole = kept[:count].view(torch.int8).view(tokens, -1, self._shape.group)
        scales = kept[count:].view(torch.float16).view(tokens, -1, 1)
        return (whole.float() * scales.float()).view(tokens, -1)


def text_key(shared: Sequence[int], row: Sequence[int]) -> str:
    """The key of a text's token ids, after those that all texts follow."""
    ids = np.asarray([len(shared), *shared, *row], dtype="<i4")
    return hashlib.sha1(ids.tobytes(), usedforsecurity=False).hexdigest()


def model_key(facts: Mapping[str, object]) -> str:
    """The key of a language model, and of all that its keys and values depend on."""
    text = json.dumps({"version": FORMAT_VERSION, **facts}, sort_keys=True)
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def padded_rows(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """(B, R) token ids, padded on the left to the longest, and (B, R) bool, False at padding."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        if tokens:
            ids[row, -len(tokens) :] = torch.tensor(tokens)
            mask[row, -len(tokens) :] = True
    return ids, mask


def extended(prefix: PrefixCache | None, layers: Sequence[KeysValues], mask: Tensor) -> PrefixCache:
    """A prefix that all sequences share and what follows it in each, as one prefix.

    ``layers`` are (B, heads, R, d) each, ``mask`` is (B, R) bool.
    """
    if prefix is None:
        return PrefixCache(layers, mask)
    size = (len(mask), -1, -1, -1)
    both = [
        (
            torch.cat([shared_keys.expand(size), keys], dim=-2),
            torch.cat([shared_values.expand(size), values], dim=-2),
        )
        for (shared_keys, shared_values), (keys, values) in zip(
            prefix.keys_values, layers, strict=True
        )
    ]
    everything = mask.new_ones(len(mask), prefix.tokens)
    return PrefixCache(both, torch.cat([everything, mask], dim=1))


def _close(files: Sequence[int]) -> None:
    for file in files:
        os.close(file)


def _split(padded: Tensor, shape: TokenShape) -> list[KeysValues]:
    """(B, R, F) values as each layer's keys and values, (B, heads, R, d)."""
    parts = iter(torch.split(padded, shape.sizes, dim=2))

    def by_head(heads: int, width: int) -> Tensor:
        return next(parts).view(*padded.shape[:2], heads, width).transpose(1, 2)

    return [
        (by_head(heads, wide), by_head(heads, deep))
        for heads, (wide, deep) in zip(shape.heads, shape.widths, strict=True)
    ]
