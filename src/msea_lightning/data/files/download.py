"""Published files from the Hugging Face Hub: resumable across runs, and checked.

``huggingface_hub`` finds the files and opens the connections. What it downloads it resumes within a
run, but starts anew in the next one, and compares no digest. Published files have up to tens of
gigabytes, so the transfer is made here: what has arrived is kept under the digest of the whole and
continued, and a file gets its name only when size and digest are those that the Hub states.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock
from huggingface_hub import HfApi, get_hf_file_metadata, get_session, hf_hub_url
from huggingface_hub.errors import (
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    hf_raise_for_status,
)
from rich.console import Console
from rich.markup import escape
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from msea_lightning.config.errors import UserError
from msea_lightning.config.text import visible
from msea_lightning.data.files.errors import ReadError, shorten
from msea_lightning.data.options import DatasetConfig

_BLOCK = 1 << 22
_GIB = 2**30
_ATTEMPTS = 5  # in a row without a byte received
_PAUSE = 1.0  # seconds between them
_TIMEOUT = 30.0  # seconds without an answer
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM)

_Advance = Callable[[int], None]

_log = logging.getLogger(__name__)


class DownloadError(ReadError):
    """Published files that cannot be fetched, or that are not what they should be."""


class _File(NamedTuple):
    """A file of the Hub, by its path in the repository."""

    name: str
    url: str
    size: int
    digest: str
    """Its SHA-256 (64 hexadecimal digits), git blob SHA-1 (40), or another mark of the Hub."""


def download(dataset: DatasetConfig, folder: Path) -> Path:
    """Fetches the files of a data set into a folder; what lies there already is not fetched again.

    Args:
        dataset: The data set's options: ``hub_id``, and ``hub_file`` where one file is enough.
        folder: Where the files will lie. What has been fetched in part is kept beside it.

    Returns:
        The folder.

    Raises:
        DownloadError: where the Hub cannot be reached or gives no access, a file is not there, the
            disk is too small, or what has been received is not what it should be.
    """
    assert dataset.hub_id is not None
    partial = partial_folder(folder)
    with _explained(dataset, folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            wanted = [file for file in _files(dataset) if not _is_there(file, folder)]
            _check_space(wanted, partial)
            console = Console(stderr=True)
            columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
            with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
                for file in wanted:
                    task = bars.add_task(escape(visible(file.name)), total=file.size)
                    _fetch(file, partial, folder, dataset, functools.partial(bars.advance, task))
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def partial_folder(folder: Path) -> Path:
    """Where what has been fetched in part is kept, for a folder of :func:`download`."""
    return folder.with_name(f"{folder.name}.partial")


def _files(dataset: DatasetConfig) -> list[_File]:
    """What the Hub has of the data set, all of one revision."""
    repository = str(dataset.hub_id)
    endpoint = os.environ.get("HF_ENDPOINT")
    info = HfApi(endpoint=endpoint).dataset_info(repository, revision="main")
    found = [sibling.rfilename for sibling in info.siblings or []]
    names = [name for name in found if not re.search(r"(^|/)\.[^/.]|\.md$", name)]
    if dataset.hub_file is not None:
        names = [name for name in names if name == dataset.hub_file]
    if not names:
        raise DownloadError(
            f"the Hugging Face data set {repository} has no {dataset.hub_file or 'data'}; it has "
            f"{shorten(found)}. Set dataset.hub_file to the file that is meant."
        )
    files = []
    for name in names:
        if not set(name.split("/")).isdisjoint({"", ".", ".."}) or "\\" in name:
            raise DownloadError(
                f"the Hugging Face data set {repository} has a file called '{name}', which would "
                "lie outside its folder. Nothing was fetched."
            )
        url = hf_hub_url(
            repository, name, repo_type="dataset", revision=info.sha, endpoint=endpoint
        )
        metadata = get_hf_file_metadata(url, endpoint=endpoint)
        if metadata.size is None or metadata.etag is None:
            raise DownloadError(
                f"{url} states no size or no digest, so that what arrives cannot be checked. Check "
                "HF_ENDPOINT, or fetch the files by hand."
            )
        files.append(_File(name, url, metadata.size, metadata.etag))
    return files


def _is_there(file: _File, folder: Path) -> bool:
    target = folder / file.name
    return target.is_file() and _flaw(file, target) is None


def _check_space(files: list[_File], partial: Path) -> None:
    needed = sum(file.size - _size(_part(file, partial)) for file in files)
    free = shutil.disk_usage(partial.parent).free
    if needed > free:
        raise DownloadError(
            f"the download needs {needed / _GIB:.1f} GiB, and {partial.parent} has "
            f"{free / _GIB:.1f} GiB left. Free some space, or set dataset.cache (or MSEA_CACHE) to "
            "a folder on another disk."
        )


def _fetch(
    file: _File, partial: Path, folder: Path, dataset: DatasetConfig, advance: _Advance
) -> None:
    part = _part(file, partial)
    part.parent.mkdir(parents=True, exist_ok=True)
    _transfer(file, part, advance)
    flaw = _flaw(file, part)
    if flaw is not None:
        part.unlink()
        raise DownloadError(
            f"{file.name} of the Hugging Face data set {dataset.hub_id} arrived damaged: {flaw}. "
            "What was received has been deleted; run the same command again."
        )
    target = folder / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target)


def _transfer(file: _File, part: Path, advance: _Advance) -> None:
    """Continues a part until it is whole; a broken connection is opened again some times."""
    if _size(part) > file.size:
        part.unlink()
    if _size(part):
        _log.info("continuing %s at %d of %d bytes", file.name, _size(part), file.size)
        advance(_size(part))
    failures = 0
    while (start := _size(part)) < file.size:
        try:
            _receive(file, part, start, advance)
            failure: Exception = ConnectionError(f"{file.name} ends after {_size(part)} bytes")
        except (HfHubHTTPError, OfflineModeIsEnabled):
            raise
        except Exception as error:
            # The HTTP library under huggingface_hub differs between its versions.
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                raise
            failure = error
        if _size(part) < file.size:
            failures = 0 if _size(part) > start else failures + 1
            if failures == _ATTEMPTS:
                raise failure
            _log.info("%s broke off at %d bytes, trying again", file.name, _size(part))
            time.sleep(_PAUSE)


def _receive(file: _File, part: Path, start: int, advance: _Advance) -> None:
    """Appends what the Hub sends from a position on; as it comes, so that nothing gets lost."""
    # Without compression, so that positions in the file are positions in the stream.
    headers = build_hf_headers(headers={"Accept-Encoding": "identity"})
    if start:
        headers["Range"] = f"bytes={start}-"
    with get_session().stream(
        "GET", file.url, headers=headers, timeout=_TIMEOUT, follow_redirects=True
    ) as response:
        if response.status_code >= 400:
            response.read()
        hf_raise_for_status(response)
        continued = response.status_code == 206
        with part.open("ab" if continued else "wb") as stream:
            for block in response.iter_bytes():
                stream.write(block)
                advance(len(block))


def _part(file: _File, partial: Path) -> Path:
    """The part of a file; the digest in its name keeps apart what belongs to other versions."""
    mark = hashlib.sha256(file.digest.encode()).hexdigest()[:16]
    return partial / f"{file.name}.{mark}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _flaw(file: _File, path: Path) -> str | None:
    """What is wrong with a file that has been fetched; None where size and digest are right."""
    size = path.stat().st_size
    if size != file.size:
        return f"it has {size} bytes instead of {file.size}"
    if re.fullmatch("[0-9a-f]{64}", file.digest):
        digest = hashlib.sha256()
    elif re.fullmatch("[0-9a-f]{40}", file.digest):
        digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    else:
        _log.warning("the Hub states no digest of %s; only its size was checked", file.name)
        return None
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != file.digest:
        return f"its digest is {digest.hexdigest()} instead of {file.digest}"
    return None


@contextmanager
def _explained(dataset: DatasetConfig, folder: Path) -> Iterator[None]:
    """Turns whatever goes wrong on the way to the Hub into a :class:`DownloadError`."""
    what = f"the Hugging Face data set {dataset.hub_id}"
    by_hand = f"or fetch the files by hand and put them into {folder}"
    try:
        yield
    except UserError:
        raise
    except OfflineModeIsEnabled as error:
        reason = "was not fetched, because HF_HUB_OFFLINE is set. Unset it"
        raise DownloadError(f"{what} {reason}, {by_hand}.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            reason = (
                f"the Hub gives no access to it ({status}). It is private, gated, or not there. "
                "Ask for access on its page and log in with `hf auth login` (or set HF_TOKEN)"
            )
        elif isinstance(error, RepositoryNotFoundError) or status == 404:
            reason = (
                "the Hub has no such data set or file (404). Check dataset.hub_id and "
                "dataset.hub_file"
            )
        else:
            reason = (
                f"the Hub answered {status}. Run the same command again later (it goes on where it "
                "stopped)"
            )
        raise DownloadError(f"{what} cannot be fetched: {reason}, {by_hand}.") from error
    except Exception as error:
        # The HTTP library under huggingface_hub differs between its versions, so do its errors.
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise DownloadError(
                f"{what} cannot be written to {folder.parent} ({error.strerror}). Set "
                "dataset.cache (or MSEA_CACHE) to a folder with enough space that you may write to."
            ) from error
        reason = next(iter(str(error).strip().splitlines()), "")
        raise DownloadError(
            f"{what} cannot be fetched: {type(error).__name__}: {reason}. Check the network "
            "connection and run the same command again (it goes on where it stopped), set "
            f"HF_ENDPOINT to a mirror, {by_hand}."
        ) from error
