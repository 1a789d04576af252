"""Preparation: published files become a store, once.

A store lies in ``<cache>/stores/<name>-<fingerprint>``. The fingerprint covers the source files
(name, size, time of change) and every option that changes what is stored. Nothing is ever written
beside the source.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import os
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from msea_lightning.config.errors import ConfigError, UserError
from msea_lightning.data.options import SPLITS, ColumnsConfig, DatasetConfig, Reader, Split
from msea_lightning.data.readers import MissingFileError, ReadError, find_files, read_files
from msea_lightning.data.readers.columns import are_of_meld, find_tables, has_splits
from msea_lightning.data.store import FORMAT_VERSION, Store, StoreError, store_lock, write_store

CONVERSION = 3
"""Raised whenever a reader makes other utterances of the same files: older stores are set aside."""

_log = logging.getLogger(__name__)


class PrepareError(UserError):
    """A data set that cannot be prepared: its files are missing, or the cache cannot be written."""


def prepare_store(dataset: DatasetConfig) -> Store:
    """Opens the store of a data set; makes it first where there is none yet.

    Safe to interrupt and to run again, and in several processes at once: one converts, the others
    wait for it. The ``info`` of the store has the keys ``name``, ``reader``, ``source`` (the path
    that was read), ``files`` (their number), ``found``, ``extractors`` and ``notes`` (the counts
    of each split, what made the features, and sentences on how the files were read, see
    :class:`~msea_lightning.data.readers.Reading`).
    """
    if dataset.reader is not Reader.demo:
        dataset = dataclasses.replace(dataset, path=str(locate(dataset)))
    folder = store_folder(dataset)
    if Store.exists(folder):
        return Store.open(folder)
    try:
        with store_lock(folder):
            if Store.exists(folder):  # written by another process in the meantime
                return Store.open(folder)
            _log.info("preparing %s in %s", dataset.name, folder)
            return _convert(dataset, folder)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full; what was written has been removed" if full else str(error)
        raise PrepareError(
            f"the data set {dataset.name} cannot be prepared in {folder}: {reason}. Set "
            "dataset.cache (or MSEA_CACHE) to a folder with enough space that you may write to."
        ) from error


def at_place(
    dataset: DatasetConfig, place: str, columns: ColumnsConfig, split: Split
) -> DatasetConfig:
    """The options of a data set whose files are at another place, or of a table in its stead.

    A table is called after its file or folder.

    Args:
        dataset: As a run has it.
        place: Where the files are now; a table is read as one, whatever they were before.
        columns: What the columns of a table are called; those not given are as in the run.
        split: The split of rows that name none.

    Raises:
        ConfigError: if there is nothing at the place that could be read in its stead.
        ReadError: if it is no table, but its name says so.
    """
    path = Path(place).expanduser()
    given = {name: value for name, value in dataclasses.asdict(columns).items() if value}
    if dataset.reader is Reader.meld_csv and not given and are_of_meld(path):
        return dataclasses.replace(dataset, path=place)
    was_table = dataset.reader is Reader.table
    merged = dataclasses.replace(dataset.columns if was_table else ColumnsConfig(), **given)
    is_table = was_table or path.suffix.lower() == ".csv"
    if not is_table:
        with suppress(ReadError):
            is_table = bool(find_tables(path, merged))
    if not is_table:
        if given:
            name = next(iter(given))
            raise ConfigError(f"columns.{name} has no effect: dataset_path={place} is no table.")
        if dataset.reader is Reader.demo:
            raise ConfigError(
                f"dataset_path={place} is no table, and the demo corpus has no files. Give a "
                "table of your own, or leave it out."
            )
        return dataclasses.replace(dataset, path=place)
    by_row = path.exists() and has_splits(path, merged)
    return dataclasses.replace(
        dataset,
        name=path.absolute().stem,
        reader=Reader.table,
        path=place,
        download=False,
        columns=merged,
        split=None if by_row else split,
        expected_train=None,
        expected_valid=None,
        expected_test=None,
    )


def earlier_sources(dataset: DatasetConfig) -> list[Path]:
    """What the stores of a data set that lie in the cache were made of, the latest store first."""
    folders = (cache_folder(dataset) / "stores").glob(f"{escape(dataset.name)}-*")
    found: dict[Path, None] = {}
    for folder in sorted(folders, key=lambda folder: -folder.stat().st_mtime):
        with suppress(StoreError):
            info = Store.open(folder).info
            if (info.get("name"), info.get("reader")) == (dataset.name, dataset.reader.value):
                found[Path(info["source"])] = None
    return list(found)


def cache_folder(dataset: DatasetConfig) -> Path:
    """Where downloads and stores lie: ``dataset.cache``, $MSEA_CACHE or ~/.cache/msea_lightning."""
    chosen = dataset.cache or os.environ.get("MSEA_CACHE") or "~/.cache/msea_lightning"
    return Path(chosen).expanduser().absolute()


def download_folder(dataset: DatasetConfig) -> Path:
    """Where the files of a data set are fetched to, and looked for without ``dataset.path``."""
    return cache_folder(dataset) / "downloads" / dataset.name


def locate(dataset: DatasetConfig) -> Path:
    """The file or folder to read; fetched first where it is missing and that is asked for.

    Raises:
        PrepareError: where it is missing, with the places where it is published.
    """
    downloads = download_folder(dataset)
    for path in (chosen_path(dataset), downloads):
        try:
            find_files(path, dataset)
            return path
        except MissingFileError as error:
            if not dataset.download:
                raise PrepareError(_missing(dataset, str(error), downloads)) from error
    _log.info("fetching %s from the Hugging Face Hub into %s", dataset.hub_id, downloads)
    # Imported here, because the Hub's client takes a second to load and is rarely needed.
    from msea_lightning.data.files.download import download

    download(dataset, downloads)
    try:
        find_files(downloads, dataset)
    except MissingFileError as error:
        done = f"although {dataset.hub_id} was fetched"
        raise PrepareError(f"{error}, {done}. Check dataset.hub_id and dataset.reader.") from error
    return downloads


def _missing(dataset: DatasetConfig, what: str, downloads: Path) -> str:
    if dataset.reader is Reader.table:
        found = "dataset.path is not set" if dataset.path is None else what
        return (
            f"{found}. Give the folder with your utterances.csv (columns id, split, text, label), "
            "or with train.csv, dev.csv and test.csv, and the features beside them: dataset=table "
            "dataset.path=FOLDER. A column of another name: dataset.columns.text=NAME."
        )
    hub = f"https://huggingface.co/datasets/{dataset.hub_id}" if dataset.hub_id else ""
    if dataset.reader is Reader.meld_csv:
        found = "dataset.path is not set" if dataset.path is None else what
        return (
            f"{found}. Give the folder with train_sent_emo.csv, dev_sent_emo.csv and "
            "test_sent_emo.csv (https://github.com/declare-lab/MELD, data/MELD): dataset="
            f"{dataset.name} dataset.reader=meld_csv dataset.path=FOLDER."
        )
    source = dataset.source or hub or "a place that dataset.source does not name"
    command = f"python -m msea_lightning.prepare dataset={dataset.name} dataset.download=true"
    fetch = f"Fetch them with `{command}`, or get them there and" if hub else "Get them there and"
    place = f"put them into {downloads}, or give" if dataset.path is None else "give"
    return (
        f"the files of the data set {dataset.name} are missing: {what}. They are published at "
        f"{source}. {fetch} {place} their file or folder with dataset.path=PATH."
    )


def chosen_path(dataset: DatasetConfig) -> Path:
    """``dataset.path``, or the folder of downloads."""
    if dataset.path is None:
        return download_folder(dataset)
    return Path(dataset.path).expanduser().absolute()


def store_folder(dataset: DatasetConfig) -> Path:
    """Where the store of these files and options lies, or would lie."""
    content: dict[str, Any] = {"conversion": CONVERSION, "format": FORMAT_VERSION}
    if dataset.reader is Reader.demo:
        from msea_lightning.data import demo

        content["demo"] = [dataset.demo_task.value, dataset.demo_utterances, dataset.demo_seed]
        # The corpus is its generator: where that changes, so does the corpus.
        sources = (Path(demo.__file__).with_suffix(suffix) for suffix in (".py", ".yaml"))
        generator = b"".join(source.read_bytes() for source in sources)
        content["generator"] = hashlib.sha256(generator).hexdigest()
    else:
        path, labels = chosen_path(dataset), dataset.labels
        root = path.parent if path.is_file() else path
        files = [(os.path.relpath(file, root), file.stat()) for file in find_files(path, dataset)]
        content |= {
            "reader": dataset.reader.value,
            "repair": dataset.repair.value,
            "empty_text": dataset.empty_text.value,
            "audio_dim": dataset.audio_dim,
            "vision_dim": dataset.vision_dim,
            "labels": [labels.kind.value, labels.low, labels.high, labels.names],
            "files": [(name, about.st_size, about.st_mtime_ns) for name, about in files],
        }
        # Only where they are given, so that earlier stores stay in use.
        own = {**dataclasses.asdict(dataset.columns), "split of all": dataset.split}
        if given := {name: str(value) for name, value in own.items() if value is not None}:
            content["columns"] = given
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return cache_folder(dataset) / "stores" / f"{dataset.name}-{digest[:12]}"


def _convert(dataset: DatasetConfig, folder: Path) -> Store:
    """Reads the files and writes the store, with progress bars where somebody is watching."""
    info: dict[str, Any] = {"name": dataset.name, "reader": dataset.reader.value}
    if dataset.reader is Reader.demo:
        from msea_lightning.data.demo import demo_utterances

        splits = demo_utterances(
            dataset.demo_task, utterances=dataset.demo_utterances, seed=dataset.demo_seed
        )
        info |= {"found": {}, "source": "generated", "files": 0}
        return write_store(folder, splits, info=info)
    path = chosen_path(dataset)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bars:
        reading = read_files(path, dataset)
        # What was found is complete when the info is written, after the last utterance.
        info |= {"found": reading.counts, "source": str(path)}
        info["files"] = len(find_files(path, dataset))
        info["extractors"] = reading.extractors
        info["notes"] = reading.notes
        parts = {
            split: bars.track(part, reading.sizes[split], description=f"converting {split}")
            for split, part in reading.items()
        }
        store = write_store(folder, parts, info=info, files=reading.files)
    for split, expected in expected_counts(dataset).items():
        count = len(store.splits[split]) if split in store.splits else 0
        if expected is not None and count != expected:
            counts = (dataset.name, count, split, expected)
            _log.warning("%s has %d utterances in %s, published are %d", *counts)
    return store


def expected_counts(dataset: DatasetConfig) -> dict[str, int | None]:
    """Utterances of each split as published, None where that is not configured."""
    return {split: getattr(dataset, f"expected_{split}") for split in SPLITS}
