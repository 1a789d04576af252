"""The layout of MMSA: MOSEI ``unaligned_50.pkl``, SIMS-V2 ``ch-simsv2s.pkl``, MOSI, SIMS.

One pickle, ``{train, valid, test: {raw_text, audio, vision, id, audio_lengths, vision_lengths,
regression_labels, ...}}``: N texts, (N, La, da) and (N, Lv, dv) features, N ids, N lengths, (N,) or
(N, 1) labels; SIMS and SIMS-V2 also have ``regression_labels_T``, ``_A`` and ``_V``, those of one
modality each. Further keys are ignored. Files with aligned features have no lengths; there, frames
of zeros at either end are padding.

The file is in memory while it is read, because a pickle of one dictionary can only be loaded
whole. What is not needed is dropped at once, and each split as soon as it has been read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from operator import length_hint
from pathlib import Path
from typing import Any

from msea_lightning.data.files.errors import MissingFileError, ReadError, shorten
from msea_lightning.data.files.unpickle import load_pickle
from msea_lightning.data.readers import checks
from msea_lightning.data.readers.checks import Frames
from msea_lightning.data.readers.reading import (
    NEEDED_SPLITS,
    SPLIT_NAMES,
    Layout,
    Record,
    Source,
    list_files,
)

_NEEDED = ("raw_text", "audio", "vision", "id", "regression_labels")
_LABELS = {"M": "regression_labels", **{name: f"regression_labels_{name}" for name in "TAV"}}
_READ = (*_NEEDED, "audio_lengths", "vision_lengths", *_LABELS.values())
_VIDEO = re.compile(r"(.+?)(\$_\$|/)", re.DOTALL)  # video$_$3, in SIMS-V2 video/0003


class MmsaLayout(Layout):
    """One pickle with all splits."""

    def find(self, path: Path) -> list[Path]:
        """The one file: the path itself, ``dataset.hub_file``, or the only pickle in a folder."""
        if path.is_file():
            return [path]
        files = list_files(path, "**/*")
        found = [file for file in files if file.suffix.lower() in (".pkl", ".pickle")]
        wanted = Path(self.dataset.hub_file or "").name
        named = [file for file in found if file.name == wanted]
        if len(named) == 1 or len(found) == 1:
            return named[:1] or found
        if not found:
            raise MissingFileError(f"{path} holds no {wanted or '.pkl file'}")
        listed = shorten(str(file.relative_to(path)) for file in found)
        raise ReadError(
            f"{path} holds {len(found)} pickles ({listed}), and one is needed. Give the file "
            "itself with dataset.path=..."
        )

    def sources(self) -> Mapping[str, Source]:
        """Loads the file."""
        (file,) = self.files
        parts = _load(file)
        sizes = {split: len(part["raw_text"]) for split, part in parts.items()}

        def records(split: str) -> Iterator[Record]:
            if split not in parts:  # read before, and dropped
                parts.update(_load(file))
            return _records(parts.pop(split))

        return {split: Source(file, partial(records, split), size) for split, size in sizes.items()}


def _load(file: Path) -> dict[str, dict[str, Any]]:
    content = load_pickle(file)
    checks.members(content, NEEDED_SPLITS, str(file))
    parts = {}
    for key in [key for key in content if key in SPLIT_NAMES]:
        split, part = SPLIT_NAMES[key], content.pop(key)
        where = f"{file}: the split '{key}'"
        if isinstance(part, dict):
            part = {name: values for name, values in part.items() if values is not None}
            if "regression_labels_M" in part:
                part.setdefault("regression_labels", part["regression_labels_M"])
        checks.members(part, _NEEDED, where)
        parts[split] = {name: part[name] for name in _READ if name in part}
        counts = {name: length_hint(values) for name, values in parts[split].items()}
        for name, count in counts.items():
            if count != counts["raw_text"]:
                raise ReadError(
                    f"{where} has {counts['raw_text']} of raw_text, but {count} of {name}; "
                    "expected one each per utterance. Fetch the file again."
                )
    return parts


def _records(part: dict[str, Any]) -> Iterator[Record]:
    for index in range(len(part["raw_text"])):
        row = {name: values[index] for name, values in part.items()}
        video = _VIDEO.match(checks.identity(row["id"]))
        yield Record(
            position=f"number {index + 1}",
            id=row["id"],
            text=row["raw_text"],
            labels={name: row[key] for name, key in _LABELS.items() if key in row},
            features={
                name: Frames(row[name], row.get(f"{name}_lengths")) for name in ("audio", "vision")
            },
            group=video[1] if video else None,
        )
