"""What ``python -m msea_lightning.extract`` does: a folder of clips becomes a table."""

from __future__ import annotations

import logging
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from msea_lightning.config.errors import ConfigError
from msea_lightning.config.roots import ExtractConfig
from msea_lightning.data.readers.checks import numbers_among
from msea_lightning.data.splits.held_out import ValidationError, hold_out
from msea_lightning.features.clips import Clip, Part, find_clips, utterances
from msea_lightning.features.contract import FeatureError, MediaError
from msea_lightning.features.engines import run_tasks
from msea_lightning.features.extraction import Extraction
from msea_lightning.features.labels import Labels, read_labels
from msea_lightning.features.options import Engine
from msea_lightning.features.table import CLIPS, TABLE, Record, TableFolder, reason_of
from msea_lightning.features.work import (
    ClipTask,
    PartTask,
    extract_clip,
    failed,
    stamp,
)

_SHOWN = 20
"""Clips whose reasons are said at the end."""

_log = logging.getLogger(__name__)


def extract_table(config: ExtractConfig) -> None:
    """Makes the table, or goes on where an earlier run was interrupted.

    Raises:
        MediaError: at the end, where something is wrong with clips; all others are in the table.
        FeatureError: where nothing can be extracted at all.
    """
    source, output = Path(config.input).expanduser(), Path(config.output).expanduser()
    if output.absolute() == source.absolute():
        raise ConfigError(f"output={output} is the folder of the clips. Give another one.")
    extraction = Extraction(config.audio, config.vision)
    facts = extraction.facts()
    if not facts:
        raise ConfigError("audio=none and vision=none: there is nothing to extract.")
    clips = every = find_clips(source)
    labels = None
    if config.labels is not None:
        labels = read_labels(Path(config.labels).expanduser(), clips)
        clips = [clip for clip in clips if clip.id in labels.rows]
    parts, unplanned = _plan(clips, labels)
    _check_ids(parts)
    folder = TableFolder(output)
    with folder.opened(facts, source, {clip.file: clip.path for clip in every}):
        todo, done = [], 0
        for clip in clips:
            task = _task(clip, parts.get(clip.file, ()), output, extraction, config)
            if clip.file in unplanned:
                folder.add(failed(task, unplanned[clip.file]))
            elif _is_done(task, folder):
                done += 1
            else:
                todo.append(task)
        if done:
            _log.info("%d of %d clips are done already", done, len(clips))
        _work(todo, folder, config.engine, config.workers or _cores())
        files = [clip.file for clip in clips]
        found = {file: reason_of(folder.records[file]) for file in files}
        reasons = {file: reason for file, reason in found.items() if reason}
        rows = _with_splits(_rows(parts, folder.records), labels, config.test_fraction, config.seed)
        folder.write(files, rows)
    if rows:
        _say_what_there_is(rows, output)
    if reasons:
        more = f"\n... and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
        raise MediaError(
            f"something is wrong with {len(reasons)} of {len(clips)} clips; "
            f"{'the others are in the table' if rows else 'nothing could be extracted'}. All "
            f"reasons are in {output / CLIPS}:\n"
            + "\n".join(list(reasons.values())[:_SHOWN])
            + more
        )


def _plan(
    clips: Sequence[Clip], labels: Labels | None
) -> tuple[dict[str, list[Part]], dict[str, str]]:
    """The utterances of each clip, by its file; and why some clips have none."""
    parts, reasons = {}, {}
    for clip in clips:
        try:
            parts[clip.file] = utterances(clip, labels.rows[clip.id] if labels else ())
        except MediaError as error:
            reasons[clip.file] = str(error)
    return parts, reasons


def _check_ids(parts: Mapping[str, Sequence[Part]]) -> None:
    """Refuses two utterances with one id, whose features would be one file."""
    owner: dict[str, str] = {}
    for file, planned in parts.items():
        for part in planned:
            other = owner.setdefault(part.id, file)
            if other != file:
                raise FeatureError(
                    f"an utterance of {other} and one of {file} have the same id, '{part.id}'. "
                    "Rename one of these clips."
                )


def _task(
    clip: Clip, parts: Sequence[Part], output: Path, extraction: Extraction, config: ExtractConfig
) -> ClipTask:
    recognises = config.transcribe is not None
    beside = extraction.vision.beside(clip.path) if extraction.vision else None
    return ClipTask(
        path=str(clip.path),
        beside=str(beside) if beside else None,
        file=clip.file,
        parts=tuple(
            PartTask(part.id, part.start, part.end, heard=recognises and part.text is None)
            for part in parts
        ),
        output=str(output),
        extractors=extraction.options,
        recogniser=(config.transcribe, config.language) if config.transcribe else None,
    )


def _is_done(task: ClipTask, folder: TableFolder) -> bool:
    """Whether this file and these utterances have been extracted, and nothing went wrong."""
    record = folder.records.get(task.file)
    if record is None or reason_of(record) or not folder.has_features(record):
        return False
    now = stamp(task)
    if now != {key: record.get(key) for key in now}:
        return False
    wanted = [(part.id, part.start, part.end) for part in task.parts]
    found = [(part["id"], part["start"], part["end"]) for part in record["parts"]]
    hears = any(part.heard for part in task.parts)
    heard = record["recogniser"] == (list(task.recogniser) if task.recogniser else None)
    return wanted == found and (heard or not hears)


def _work(tasks: Sequence[ClipTask], folder: TableFolder, engine: Engine, workers: int) -> None:
    """Works on clips with a progress bar, where somebody is watching."""

    def lost(task: ClipTask) -> Record:
        return failed(task, f"{task.path}: the process that decoded it died; it may lack memory.")

    console = Console(stderr=True)
    columns = (TextColumn("extracting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        under_way = bar.add_task("", total=len(tasks))
        processes = max(1, min(workers, len(tasks)))
        for record in run_tasks(extract_clip, tasks, engine=engine, workers=processes, lost=lost):
            folder.add(record)
            bar.advance(under_way)


def _rows(parts: Mapping[str, Sequence[Part]], records: Mapping[str, Record]) -> list[Part]:
    """The utterances that could be extracted, in the order of the clips."""
    rows = []
    for file, planned in parts.items():
        done = {part["id"]: part for part in records[file]["parts"]}
        for part in planned:
            found = done.get(part.id)
            if found is not None and found["reason"] is None:
                rows.append(replace(part, text=found["heard"] if part.text is None else part.text))
    return rows


def _with_splits(
    rows: Sequence[Part], labels: Labels | None, fraction: float, seed: int
) -> list[Part]:
    """The utterances with a split each, and what was decided in the log."""
    if labels is not None and labels.split:
        return list(rows)
    if labels is None or not any(part.columns["label"] for part in rows):
        _log.info("no labels: all utterances are in the split test, to predict them")
        return [_in_split(part, "test") for part in rows]
    labelled = [index for index, part in enumerate(rows) if part.columns["label"]]
    texts = [rows[index].columns["label"] for index in labelled]
    numbers = list(numbers_among(dict(enumerate(texts)), ",").values())
    values = numbers if len(numbers) == len(texts) else texts
    groups = [rows[index].columns["group"] or None for index in labelled]
    try:
        held = hold_out(values, groups, fraction=fraction, seed=seed)
    except ValidationError as error:
        reason, remedy = "all labelled utterances belong to one group", "more groups"
        if len(labelled) == 1:
            reason, remedy = "a single utterance has a label", "label more of them"
        raise FeatureError(
            f"no test part can be held out, because {reason}. Give the labels a column split, or "
            f"{remedy}."
        ) from error
    train = {labelled[index] for index in range(len(labelled))} - {labelled[i] for i in held}
    _log.info(
        "no column split: %d of %d labelled utterances%s are held out to test on, seed %d",
        *(len(held), len(labelled), ", whole groups," if any(groups) else "", seed),
    )
    if len(labelled) < len(rows):
        _log.warning(
            "%d utterances have no label: they are in the split test, where they are not scored",
            len(rows) - len(labelled),
        )
    return [
        _in_split(part, "train" if index in train else "test") for index, part in enumerate(rows)
    ]


def _in_split(part: Part, split: str) -> Part:
    return replace(part, columns={**part.columns, "split": split})


def _say_what_there_is(rows: Sequence[Part], output: Path) -> None:
    counts = Counter(part.columns.get("split", "") for part in rows)
    splits = ", ".join(f"{count} {split}" for split, count in counts.items())
    _log.info("%d utterances in %s (%s)", len(rows), output / TABLE, splits)
    silent = sum(not part.text for part in rows)
    if silent:
        _log.warning(
            "%d utterances have no words; to give them some: transcribe=, a column text in labels, "
            "or .srt, .vtt or .txt files beside the clips",
            silent,
        )
    if counts.keys() != {"test"}:
        _log.info(
            "to train on them: python -m msea_lightning.train dataset=table %s",
            shlex.quote(f"dataset.path={output}"),
        )


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
