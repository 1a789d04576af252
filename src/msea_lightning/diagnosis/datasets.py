"""Which data sets are on this machine, and where."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from msea_lightning.config.errors import UserError
from msea_lightning.data.options import DatasetConfig, Reader


@dataclass(frozen=True)
class Resource:
    """A choice of ``conf/dataset`` or ``conf/backbone``, and where it was found.

    Attributes:
        state: ``built in``, ``prepared``, ``found`` (data set) or ``complete`` (backbone) where a
            run can use it; ``incomplete``; ``missing``; ``yours`` for data of the user.
        option: What a command needs to use it there; empty where it finds it by itself.
    """

    name: str
    state: str
    place: str = ""
    option: str = ""
    flaw: str = ""
    remedy: str = ""

    @property
    def usable(self) -> bool:
        """Whether a run can use it as it is."""
        return self.state in ("built in", "prepared", "found", "complete")


def find_datasets(configs: Sequence[DatasetConfig], folder: Path | None = None) -> list[Resource]:
    """Where the data sets of ``conf/dataset`` are; a folder that the user names is searched too."""
    names = {config.name for config in configs}
    found = []
    for config in configs:
        own = (
            [] if folder is None or config.reader is not Reader.table else find_own(config, folder)
        )
        found += own or [find_dataset(config, folder=folder, others=names - {config.name})]
    return found


def find_own(config: DatasetConfig, folder: Path) -> list[Resource]:
    """The own tables in a folder and up to three below, known label files too.

    Args:
        config: The options of ``dataset=table``.
        folder: A folder of data sets; what lies in the folder of a table belongs to it.
    """
    from msea_lightning.data import prepare
    from msea_lightning.data.readers.columns import describe, has_splits
    from msea_lightning.data.store import Store

    found = []
    for place in _table_folders(folder, config):
        chosen = replace(config, name=place.name or config.name, path=str(place))
        try:
            if not has_splits(place, config.columns):
                continue  # answers, say, but nothing to train on
            state = "prepared" if Store.exists(prepare.store_folder(chosen)) else "found"
            known = describe(place, config.columns)
        except (UserError, OSError) as error:
            found.append(Resource(config.name, "incomplete", str(place), flaw=str(error)))
            continue
        words = (f"dataset={config.name}", f"dataset.path={place}", f"dataset.name={chosen.name}")
        option = shlex.join(words) + (f"  # {known}" if known else "")
        found.append(Resource(config.name, state, str(place), option))
    return found


def _table_folders(folder: Path, config: DatasetConfig, depth: int = 3) -> Iterator[Path]:
    """Folders with tables; of one that has them those below hold its features."""
    from msea_lightning.data.files.errors import MissingFileError, ReadError
    from msea_lightning.data.readers.columns import find_tables

    try:
        find_tables(folder, config.columns)
        yield folder
        return
    except MissingFileError:
        pass
    except ReadError:
        yield folder
        return
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return
    for path in inside:
        if depth and not path.name.startswith("."):
            yield from _table_folders(path, config, depth - 1)


def find_dataset(
    config: DatasetConfig, *, folder: Path | None = None, others: set[str] | None = None
) -> Resource:
    """Where the published files of a data set are, and whether they are prepared.

    Searched are the folder of downloads, a folder that the user names, but for what is named after
    one of the ``others``, and the files that earlier stores were made of.
    """
    from msea_lightning.data import prepare
    from msea_lightning.data.files.download import partial_folder
    from msea_lightning.data.store import Store

    name = config.name
    if config.reader is Reader.demo:
        return Resource(name, "built in", place="generated where it is used")
    flaws = []
    candidates = _candidates(folder, config, others or set()) if folder else []
    for candidate in [None, *candidates, *prepare.earlier_sources(config)]:
        chosen = replace(config, path=None if candidate is None else str(candidate))
        try:
            state = "prepared" if Store.exists(prepare.store_folder(chosen)) else "found"
        except (UserError, OSError) as error:
            if prepare.chosen_path(chosen).exists():
                flaws.append(str(error))
            continue
        option = "" if candidate is None else shlex.quote(f"dataset.path={candidate}")
        return Resource(name, state, str(prepare.chosen_path(chosen)), option)
    remedy = _remedy(config)
    if config.reader is Reader.table:
        return Resource(name, "yours", remedy=remedy)
    partial = partial_folder(prepare.download_folder(config))
    if any(path.is_file() for path in partial.rglob("*")):
        flaws.append("a download broke off; the same command goes on")
    state = "incomplete" if flaws else "missing"
    return Resource(name, state, flaw="; ".join(flaws), remedy=remedy)


def _remedy(config: DatasetConfig) -> str:
    command = f"python -m msea_lightning.prepare dataset={config.name}"
    if config.reader is Reader.table:
        return f"{command} dataset.path=FOLDER  # with utterances.csv and features.npz"
    if config.hub_id is not None:
        return f"{command} dataset.download=true"
    return f"{command} dataset.path=PATH  # from {config.source}"


def _candidates(folder: Path, config: DatasetConfig, others: set[str]) -> Iterator[Path]:
    """Folders and files in a folder of data sets that may be this one, by their names."""
    from msea_lightning.data.readers import find_files

    for inside in sorted(folder.iterdir()):
        if inside.is_dir() and inside.name.lower() == config.name:
            yield inside
    try:
        files = find_files(folder, config)
    except (UserError, OSError):
        return
    parents = {part.lower() for file in files for part in file.relative_to(folder).parts[:-1]}
    if parents & others:
        return
    stems = {file.stem.rpartition("_")[0] for file in files}
    if config.reader is Reader.mmsa and files[0].name == Path(config.hub_file or "").name:
        yield files[0]
    elif config.reader is Reader.table or (
        config.reader is Reader.dialogue and stems == {config.name}
    ):
        yield folder
