"""Predictions for many utterances, by a trained plugin."""

from __future__ import annotations

import enum
import hashlib
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from msea_lightning.config.errors import UserError
from msea_lightning.config.roots import PredictConfig
from msea_lightning.data.context import Said, said_before
from msea_lightning.data.files.errors import shorten
from msea_lightning.data.utterance import DataError, Utterance
from msea_lightning.features.contract import Frames
from msea_lightning.features.engines import progress_bar, run_tasks
from msea_lightning.features.extraction import check_facts
from msea_lightning.features.processes import usable_cores
from msea_lightning.inference.inputs import InputRow, Inputs, open_inputs
from msea_lightning.inference.outputs import output_path, print_output, write_output
from msea_lightning.inference.tasks import (
    AnswerTask,
    ClipTask,
    answer_batch,
    load_predictor,
    read_clip,
)
from msea_lightning.inference.work import Work
from msea_lightning.plugin import Plugin, Predictor

_log = logging.getLogger(__name__)


class PredictionError(UserError):
    """Utterances without a prediction."""


def predict(config: PredictConfig) -> None:
    """Writes an answer, or why there is none, for every utterance of the input.

    First all utterances are read, and features extracted from clips; then they are answered in the
    batches in which a run tests them. Both are written down as they are done, so that the same
    command goes on where another ended.

    Raises:
        PredictionError: at the end, if there were utterances without a prediction.
        UserError: if nothing can be predicted at all.
    """
    target = output_path(config.output, overwrite=config.overwrite) if config.output else None
    with (
        open_inputs(config.input, config.text, config.columns) as inputs,
        tempfile.TemporaryDirectory() as scratch,
    ):
        plugin = Plugin.from_pretrained(config.plugin)
        check_facts(plugin.facts.features, inputs.extractors)
        predictor = load_predictor(config.plugin, config.language_model)
        if inputs.has_clips:
            predictor.extraction()  # refuses what cannot be extracted before anything is done
        folder = Path(scratch) / "work"
        if target is not None:
            folder = target.with_name(f"{target.name}.partial")
        with Work(folder, _job(config, plugin, inputs), anew=config.overwrite) as work:
            if config.output:
                # Another process may have finished since.
                output_path(config.output, overwrite=config.overwrite)
            with progress_bar() as progress:
                _read(config, inputs, predictor, work, progress)
                _answer(config, inputs, predictor, work, progress)
            found = [
                work.done("answered").get(number) or work.done("read")[number]
                for number in range(len(inputs.rows))
            ]
            if target is None:
                print_output(inputs.rows, found)
            else:
                write_output(target, inputs.rows, found)
                work.remove()
    _report(inputs, found, target)


def _read(
    config: PredictConfig, inputs: Inputs, predictor: Predictor, work: Work, progress: Progress
) -> None:
    """Reads every utterance once: its number of frames, or why it cannot be predicted."""
    left = [number for number in range(len(inputs.rows)) if number not in work.done("read")]
    done = len(inputs.rows) - len(left)
    bar = progress.add_task("reading", total=len(inputs.rows), completed=done)
    tasks: list[ClipTask] = []
    utterances: dict[int, Utterance] = {}
    unread: Counter[str] = Counter()
    for number in left:
        with _noting_errors(work, "read", number):
            given = inputs.utterance(number)
            utterance = _readable(given, predictor)
            unread.update(given.features.keys() - utterance.features.keys())
            if utterance.clip is not None:
                utterances[number] = utterance
                tasks.append(ClipTask(number, utterance.clip, config.plugin))
                continue
            predictor.check(utterance)
            work.note("read", {number: _frames(utterance)})
        progress.advance(bar)
    for name, count in unread.items():
        _log.warning(
            "%s features of %d utterances are left out: the plugin was trained without any",
            *(name, count),
        )
    workers = config.workers or usable_cores()
    for number, found in run_tasks(
        read_clip, tasks, engine=config.engine, workers=workers, lost=_lost_clip
    ):
        with _noting_errors(work, "read", number):
            if isinstance(found, str):
                raise DataError(found)
            given = utterances[number]
            complete = replace(given, features={**found, **given.features}, clip=None)
            predictor.check(complete)
            work.keep_features(number, complete.features)
            work.note("read", {number: _frames(complete)})
        progress.advance(bar)


def _answer(
    config: PredictConfig, inputs: Inputs, predictor: Predictor, work: Work, progress: Progress
) -> None:
    """Answers all utterances that could be read."""
    frames = {
        number: values["frames"]
        for number, values in work.done("read").items()
        if "frames" in values
    }
    done = work.done("answered")
    bar = progress.add_task("predicting", total=len(frames), completed=len(done))
    decode = config.decode and config.decode.value
    _say_what_is_cut(predictor, [inputs.rows[number] for number in frames])
    before = _said_before(inputs, predictor)
    tasks = (
        AnswerTask(
            list(found),
            list(found.values()),
            [before[number] for number in found],
            config.plugin,
            config.language_model,
            decode,
        )
        for numbers in _batches(config, inputs, predictor, frames, before)
        if (found := _found(inputs, predictor, work, [n for n in numbers if n not in done]))
    )
    # One process here: the language model has all cores.
    for numbers, answers in run_tasks(
        answer_batch, tasks, engine=config.engine, workers=1, lost=_lost_batch
    ):
        work.note("answered", dict(zip(numbers, answers, strict=True)))
        progress.update(bar, completed=len(done))


@contextmanager
def _noting_errors(work: Work, stage: str, number: int) -> Iterator[None]:
    """Writes down why a row cannot be predicted, and goes on."""
    try:
        yield
    except (UserError, OSError) as error:
        work.note(stage, {number: {"error": str(error)}})


def _say_what_is_cut(predictor: Predictor, rows: Sequence[InputRow]) -> None:
    questions = predictor.questions([Utterance(row.id, row.text) for row in rows])
    cut = [q for q in questions if len(q.tokens) > q.model.prompt.text_tokens]
    if cut:
        _log.warning(
            "texts longer than the %d tokens that the plugin reads, the rest of which is left out: "
            "%d of %d (%s)",
            *(cut[0].model.prompt.text_tokens, len(cut), len(rows)),
            shorten(q.utterance.id for q in cut),
        )


def _said_before(inputs: Inputs, predictor: Predictor) -> list[list[Utterance]]:
    """What the plugin reads before each row: of all rows, also those that have no answer.

    It comes from the rows alone, so that it is the same wherever an interrupted job goes on.
    """
    [model] = predictor.models.values()
    number = model.prompt.wording.context
    if not number:
        return [[] for _ in inputs.rows]
    if not any(row.group for row in inputs.rows):
        _log.info(
            "the plugin reads up to %d utterances before each of a conversation, but no utterance "
            "has a group, so it reads each alone: give a table the columns group and speaker, or "
            "lines these keys",
            number,
        )
    rows = (
        ((row.split, row.group) if row.group else None, Said(row.text, row.speaker))
        for row in inputs.rows
    )
    return [
        [Utterance(text=said.text, speaker=said.speaker) for said in last]
        for last in said_before(rows, number)
    ]


def _found(
    inputs: Inputs, predictor: Predictor, work: Work, numbers: Sequence[int]
) -> dict[int, Utterance]:
    """The utterances of a batch, without those that can no longer be read."""
    found = {}
    for number in numbers:
        with _noting_errors(work, "answered", number):
            utterance = _readable(_utterance(inputs, work, number), predictor)
            predictor.check(utterance)
            found[number] = utterance
    return found


def _batches(
    config: PredictConfig,
    inputs: Inputs,
    predictor: Predictor,
    frames: Mapping[int, Any],
    before: Sequence[Sequence[Utterance]],
) -> Iterator[list[int]]:
    """The batches, as numbers of rows; those of a split by themselves."""
    splits: dict[str, list[int]] = {}
    for number in sorted(frames):
        splits.setdefault(inputs.rows[number].split, []).append(number)
    for numbers in splits.values():
        rows = [inputs.rows[number] for number in numbers]
        planned = predictor.plan(
            [Utterance(row.id, row.text, speaker=row.speaker) for row in rows],
            [frames[number] for number in numbers],
            batch_size=config.batch_size,
            before=[before[number] for number in numbers],
        )
        yield from ([numbers[position] for position in batch] for batch in planned)


def _lost_clip(task: ClipTask) -> tuple[int, dict[str, Frames] | str]:
    return task.number, f"{task.clip.path}: the process that read it died. It may be damaged."


def _lost_batch(task: AnswerTask) -> tuple[list[int], list[dict[str, Any]]]:
    raise PredictionError(
        f"the process that answered {len(task.numbers)} utterances died, perhaps for lack of "
        "memory: lower batch_size, and give the same command again."
    )


def _utterance(inputs: Inputs, work: Work, number: int) -> Utterance:
    """The utterance of a row, with the features that were extracted for it."""
    row = inputs.rows[number]
    if not work.has_features(number):
        utterance = inputs.utterance(number)
        if utterance.clip is not None:
            raise DataError(f"utterance {row.id!r}: the features of its clip are gone. Begin anew.")
        return utterance
    return Utterance(row.id, row.text, features=work.features(number), speaker=row.speaker)


def _readable(utterance: Utterance, predictor: Predictor) -> Utterance:
    """The utterance with those features alone that the plugin reads: a table may hold more."""
    [model] = predictor.models.values()
    features = {name: found for name, found in utterance.features.items() if name in model.dims}
    return replace(utterance, features=features)


def _frames(utterance: Utterance) -> dict[str, Any]:
    return {"frames": {name: len(found) for name, found in utterance.features.items()}}


def _job(config: PredictConfig, plugin: Plugin, inputs: Inputs) -> dict[str, Any]:
    """What tells a job from others: everything that changes an answer."""
    digest = hashlib.sha256(repr(plugin.facts).encode())
    for name, tensor in sorted(plugin.weights.items()):
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    listed = hashlib.sha256(repr(inputs.rows).encode())
    for file in inputs.files:
        listed.update(repr((str(file), _state(file))).encode())
    return {
        "plugin": digest.hexdigest(),
        "input": listed.hexdigest(),
        "decode": config.decode and config.decode.value,
        "batch_size": config.batch_size,
        "language_model": {
            key: value.value if isinstance(value, enum.Enum) else value
            for key, value in asdict(config.language_model).items()
        },
    }


def _state(file: Path) -> tuple[int, int] | None:
    """Size and time of a file, which tell whether it has changed; None where it is not there."""
    try:
        stat = file.stat()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None
    return stat.st_size, stat.st_mtime_ns


def _report(inputs: Inputs, found: Sequence[Mapping[str, Any]], target: Path | None) -> None:
    """Says where the answers are; raises where some are missing."""
    failed = [
        f"{row.id}: {values['error']}"
        for row, values in zip(inputs.rows, found, strict=True)
        if "error" in values
    ]
    if failed:
        where = "on standard output" if target is None else f"in {target}"
        raise PredictionError(
            f"{len(failed)} of {len(found)} utterances have no prediction. The reasons are "
            f"also {where}: {shorten(failed)}"
        )
    if target is not None:
        _log.info("%d predictions in %s", len(found), target)
