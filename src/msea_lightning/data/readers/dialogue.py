"""The layout of MELD, CHERMA and IEMOCAP as the original implementation reads them.

Three pickles, ``<name>_{train,valid,test}.pkl``, each a list of ``{"label": str, "features":
{"text": str, "audio": (La, da), "video": (Lv, dv), "audio_len": int, "video_len": int}}``, padded.
The utterances get the ids ``<split>-<number>``, counted from 0. Dialogue and speaker are read where
an entry names them, the dialogue also from an id such as ``dia12_utt3`` or ``Ses01F_impro01_M003``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from msea_lightning.data.files.errors import ReadError, shorten
from msea_lightning.data.files.unpickle import iterate_pickle
from msea_lightning.data.readers import checks
from msea_lightning.data.readers.checks import Frames
from msea_lightning.data.readers.reading import (
    SPLIT_NAMES,
    Layout,
    Record,
    Source,
    dialogue_of,
    refuse_missing,
    split_files,
)
from msea_lightning.data.utterance import MAIN_LABEL

_DIALOGUES = ("dialogueid", "dialogid", "dialogue", "dialog", "conversationid", "conversation")
_IDS = ("id", "uttid", "utteranceid", "utterancename", "name", "file", "filename", "vid")
_SPEAKERS = ("speaker", "speakerid")

_log = logging.getLogger(__name__)


class DialogueLayout(Layout):
    """One pickle for each split; a part of one is in memory at a time."""

    def find(self, path: Path) -> list[Path]:
        """Files called ``dataset.name``, or else those of the only other name in the folder."""
        name = self.dataset.name
        if path.is_file():
            stem, _, split = path.stem.rpartition("_")
            if not stem or split not in SPLIT_NAMES:
                raise ReadError(
                    f"{path} is not called <name>_train.pkl, <name>_valid.pkl or <name>_test.pkl. "
                    "Rename it or check dataset.reader."
                )
            name, path = stem, path.parent
        found = split_files(path, "pkl")
        found.pop("", None)
        if name not in found and len(found) > 1:
            raise ReadError(
                f"{path} holds the files of {shorten(sorted(found))}, none of {name}. Give one of "
                "the files themselves with dataset.path=..."
            )
        self._by_split = found.get(name) or next(iter(found.values()), {})
        refuse_missing(self._by_split, path, f"{name}_{{}}.pkl")
        return list(self._by_split.values())

    def sources(self) -> Mapping[str, Source]:
        """Where the records of each split come from; nothing is opened yet."""
        return {
            split: Source(file, partial(self._records, split, file))
            for split, file in self._by_split.items()
        }

    def _records(self, split: str, file: Path) -> Iterator[Record]:
        for index, item in enumerate(iterate_pickle(file)):
            where = f"{file}: utterance '{split}-{index}' ({split}, number {index + 1})"
            features = checks.members(item, ("label", "features"), where)["features"]
            checks.members(features, ("text", "audio", "video"), f"{where}, features,")
            about = {
                str(name).lower().replace("_", "").replace(" ", ""): value
                for name, value in (*features.items(), *item.items())
            }
            ids = (about[name] for name in _IDS if isinstance(about.get(name), str))
            group = next(filter(None, (_find(about, _DIALOGUES), *map(dialogue_of, ids))), None)
            if index == 0 and split == "train" and "valid" not in self._by_split and not group:
                _log.warning(
                    "there is no valid file, and %s names no dialogues: the validation part will "
                    "share dialogues with the training part, and look better than the test part. "
                    "Give every utterance a field 'dialogue', or the data set a valid file",
                    file,
                )
            yield Record(
                position=f"number {index + 1}",
                id=f"{split}-{index}",
                text=features["text"],
                labels={MAIN_LABEL: item["label"]},
                features={
                    name: None
                    if features[key] is None
                    else Frames(features[key], features.get(f"{key}_len"))
                    for name, key in (("audio", "audio"), ("vision", "video"))
                },
                group=group,
                speaker=_find(about, _SPEAKERS),
            )


def _find(about: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The first of some fields that is there, as text."""
    found = (about[name] for name in names if about.get(name) is not None)
    return next(map(checks.identity, found), None)
