"""Clips in a folder, the transcripts beside them, and the utterances that they hold."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from msea_lightning.data.files.errors import shorten
from msea_lightning.features import media
from msea_lightning.features.contract import FeatureError, MediaError
from msea_lightning.features.subtitles import SUFFIXES, Cue, read_subtitles, words_between

_MEDIA = re.compile(
    r"\.(3g[2p]|aac|ac3|aiff?|amr|asf|au|avi|caf|f4v|flac|flv|m2ts|m4[abv]|mk[av]|mov|mp[234]|mpe?g"
    r"|mts|mxf|og[agv]|opus|spx|w64|wav|webm|wm[av])"
)
"""Suffixes of sound and video alone."""

_OTHER = re.compile(
    r"\.(avif|bmp|gif|hei[cf]|ico|jpe?g|png|psd|svg|tiff?|webp"
    r"|ass|css|csv|docx?|html?|ini|js|jsonl?|log|md|pdf|pptx?|py|rst|rtf|srt|ssa|tex|toml|tsv|txt"
    r"|vtt|xlsx?|xml|ya?ml"
    r"|7z|bin|bz2|ckpt|db|gz|h5|hdf5|mat|np[yz]|parquet|pickle|pkl|pth?|rar|safetensors|tar|tgz|xz"
    r"|zip)"
)
"""Suffixes of pictures, text and data, some of which FFmpeg would decode."""

_TRANSCRIPTS = (*SUFFIXES, ".txt")
"""Suffixes of what lies beside a clip; see :class:`Transcript`."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """A file with sound or pictures.

    Attributes:
        path: Where it is.
        file: Its path in the folder of all clips.
        id: The same without its suffix, in NFC and without blanks at its ends.
    """

    path: Path
    file: str
    id: str


@dataclass(frozen=True)
class Part:
    """One utterance of a clip.

    Attributes:
        id: Of the utterance, and the name of its feature files.
        start: Seconds; None for the beginning of the clip.
        end: Seconds; None for its end.
        text: What is said; None where nobody has written it down.
        columns: What else the table says of it, such as its label.
    """

    id: str
    start: float | None = None
    end: float | None = None
    text: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


def find_clips(folder: Path) -> list[Clip]:
    """All clips in a folder and below, sorted by name; a single file is a folder of one.

    Files called as sound or video are clips, whether they can be decoded or not; those called as
    pictures, text or data are none; others are where they can be decoded. Hidden files are none.

    Raises:
        FeatureError: where there is no clip, one has no name, or two would have the same id.
    """
    if not folder.exists():
        raise FeatureError(f"input={folder}: there is no such folder.")
    root = folder if folder.is_dir() else folder.parent
    files = sorted(folder.rglob("*")) if folder.is_dir() else [folder]
    found: list[Path] = []
    others: list[Path] = []
    for path in files:
        name = path.relative_to(root)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            (found if _is_clip(path) else others).append(path)
    if not found and not folder.is_dir():
        raise FeatureError(
            f"input={folder} is no file with sound or video. Give a clip, or the folder of the "
            "clips."
        )
    if not found:
        there = f"{_files(others)}, none with sound or video" if others else "no file"
        raise FeatureError(f"input={folder} holds {there}. Give the folder of the clips.")
    stems = {path.with_suffix("") for path in found}
    left = [
        path
        for path in others
        if path.suffix not in _TRANSCRIPTS or path.with_suffix("") not in stems
    ]
    if left:
        _log.info("not clips in %s: %s", folder, _files(left))
    clips = []
    for path in found:
        file = path.relative_to(root).as_posix()
        if not path.stem.strip():
            raise FeatureError(f"input={folder}: the clip '{file}' has no name. Rename it.")
        # Whoever reads the table takes blanks off.
        identity = unicodedata.normalize("NFC", file.removesuffix(path.suffix)).strip()
        clips.append(Clip(path, file, identity))
    by_id: dict[str, list[str]] = {}
    for clip in clips:
        by_id.setdefault(clip.id, []).append(clip.file)
    doubles = [" and ".join(names) for names in by_id.values() if len(names) > 1]
    if doubles:
        raise FeatureError(
            f"input={folder}: clips that differ in their suffix or in blanks alone would have the "
            f"same id: {shorten(doubles)}. Rename them, or move one of each elsewhere."
        )
    return clips


def _files(paths: Sequence[Path]) -> str:
    """How many files there are, and of which kinds."""
    kinds = Counter(path.suffix.lower() or path.name for path in paths)
    return f"{len(paths)} file{'s' * (len(paths) > 1)} ({shorten(kinds)})"


def transcripts(clip: Clip) -> list[Path]:
    """The files beside a clip that say what is said in it."""
    beside = [clip.path.with_suffix(suffix) for suffix in _TRANSCRIPTS]
    return [file for file in beside if _is_there(file)]


class Transcript:
    """What lies beside a clip: subtitles (``clip.srt``, ``clip.vtt``) or a text (``clip.txt``).

    Attributes:
        cues: The cues of the subtitles; None where there are no subtitles.
        text: The text file's words; None where there is none.

    Raises:
        MediaError: where there is more than one of them, or one that cannot be read.
    """

    def __init__(self, clip: Clip) -> None:
        self.cues: list[Cue] | None = None
        self.text: str | None = None
        files = transcripts(clip)
        if len(files) > 1:
            names = " and ".join(file.name for file in files)
            raise MediaError(f"{clip.path} has two transcripts, {names}. Keep one of them.")
        for file in files:
            if file.suffix == ".txt":
                self.text = _read_text(file)
            else:
                self.cues = read_subtitles(file)

    def words(self, start: float | None, end: float | None) -> str | None:
        """What is said in a part of the clip; None where that is not known."""
        if self.cues is not None:
            return words_between(self.cues, start, end)
        return self.text if start is None and end is None else None


def utterances(clip: Clip, rows: Sequence[Part]) -> list[Part]:
    """The utterances of a clip.

    They are the rows that the user's table has of it; without any, the cues of its subtitles,
    called ``clip#1`` and so on; without those, the clip as a whole. Rows without words of their own
    get those that lie beside the clip.

    Raises:
        MediaError: where the transcript cannot be read, or has no such cue.
    """
    beside = Transcript(clip)
    if rows:
        return [_completed(row, clip, beside) for row in rows]
    if beside.cues is None:
        return [Part(clip.id, text=beside.text)]
    if not beside.cues:
        raise MediaError(f"{clip.path}: no cue of its subtitles has words. Remove the file.")
    return [
        Part(f"{clip.id}#{cue.number}", cue.start, cue.end, cue.text, {"group": clip.id})
        for cue in beside.cues
    ]


def _completed(row: Part, clip: Clip, beside: Transcript) -> Part:
    """A row with the times of the cue that it names, and with words."""
    cue = None
    number = row.id.removeprefix(f"{clip.id}#")
    if row.start is None and number != row.id and beside.cues is not None:
        cue = next((cue for cue in beside.cues if str(cue.number) == number), None)
        if cue is None:
            raise MediaError(
                f"{clip.path}: the labels name its cue {number}, but its subtitles have no such "
                "cue with words. Correct the id."
            )
        row = replace(row, start=cue.start, end=cue.end)
    if row.text is not None:
        return row
    return replace(row, text=cue.text if cue else beside.words(row.start, row.end))


def _is_clip(path: Path) -> bool:
    suffix = path.suffix.lower()
    if _MEDIA.fullmatch(suffix):
        return True
    if _OTHER.fullmatch(suffix):
        return False
    try:
        media.probe(path)
    except MediaError:
        return False
    return True


def _is_there(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # the name is too long
        return False


def _read_text(file: Path) -> str:
    try:
        return " ".join(file.read_bytes().decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise MediaError(
            f"{file} is not UTF-8 (byte {error.start + 1}). Save it as UTF-8."
        ) from error
