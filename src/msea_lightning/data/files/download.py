"""Published files from the Hugging Face Hub: resumable across runs, and checked.

The cache of ``huggingface_hub`` resumes within a run only, and compares no digest. Published files
have up to tens of gigabytes, so that what has arrived is kept here under the digest of the whole
and continued; a file gets its name only when size and digest are those that the Hub states.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from msea_lightning.config.errors import UserError, first_line
from msea_lightning.config.text import visible
from msea_lightning.data.files.errors import ReadError, shorten
from msea_lightning.data.options import DatasetConfig

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM)

_log = logging.getLogger(__name__)


class DownloadError(ReadError):
    """Published files that cannot be fetched, or that are not what they should be."""


class _File(NamedTuple):
    """A file of the Hub, by its path in the repository."""

    name: str
    url: str
    size: int
    sha256: str | None  # none of a small file, which git keeps
    blob: str  # git's SHA-1


def download(dataset: DatasetConfig, folder: Path) -> Path:
    """Fetches ``hub_file`` or all files of ``hub_id`` into a folder, but those that are there."""
    partial = partial_folder(folder)
    with _explained(dataset, folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            wanted = [file for file in _files(dataset) if _flaw(file, folder / file.name)]
            for file in wanted:
                # The digest in its name keeps apart what belongs to other versions of the file.
                part = partial / f"{file.name}.{file.blob}"
                _transfer(file, part)
                target = folder / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                part.replace(target)
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def partial_folder(folder: Path) -> Path:
    """Where what has been fetched in part is kept, for a folder of :func:`download`."""
    return folder.with_name(f"{folder.name}.partial")


def _files(dataset: DatasetConfig) -> list[_File]:
    """What the Hub has of the data set, all of one revision."""
    repo = str(dataset.hub_id)
    endpoint = os.environ.get("HF_ENDPOINT")
    info = HfApi(endpoint=endpoint).dataset_info(repo, revision="main", files_metadata=True)
    found = {sibling.rfilename: sibling for sibling in info.siblings or []}
    names = [name for name in found if not re.search(r"(^|/)\.[^/.]|\.md$", name)]
    if dataset.hub_file is not None:
        names = [name for name in names if name == dataset.hub_file]
    if not names:
        raise DownloadError(
            f"the Hugging Face data set {repo} has no {dataset.hub_file or 'data'}; it has "
            f"{shorten(found)}. Set dataset.hub_file to the file that is meant."
        )
    files = []
    for name in names:
        if not set(name.split("/")).isdisjoint({"", ".", ".."}) or "\\" in name:
            raise DownloadError(
                f"the Hugging Face data set {repo} has a file called '{name}', which would "
                "lie outside its folder. Nothing was fetched."
            )
        url = hf_hub_url(repo, name, repo_type="dataset", revision=info.sha, endpoint=endpoint)
        about = found[name]
        if about.size is None or about.blob_id is None:
            raise DownloadError(
                f"{url} states no size or no digest. Check HF_ENDPOINT, or fetch the files by hand."
            )
        sha256 = about.lfs.sha256 if about.lfs else None
        files.append(_File(name, url, about.size, sha256, about.blob_id))
    return files


def _transfer(file: _File, part: Path) -> None:
    """Continues a part until it is whole, and checks it."""
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as stream:
        start = stream.tell()
        if start > file.size:
            start = stream.truncate(0)
        if start:
            _log.info("continuing %s at %d of %d bytes", file.name, start, file.size)
        http_get(
            file.url,
            stream,
            resume_size=start,
            # Without compression, so that positions in the file are positions in the stream.
            headers=build_hf_headers(headers={"Accept-Encoding": "identity"}),
            expected_size=file.size,
            displayed_filename=visible(file.name),
        )
    flaw = _flaw(file, part)
    if flaw is not None:
        part.unlink()
        raise DownloadError(
            f"{file.name} arrived damaged: {flaw}. What was received has been deleted; run the "
            "same command again."
        )


def _flaw(file: _File, path: Path) -> str | None:
    """What is wrong with a file that was fetched, or is missing; None where it is right."""
    if not path.is_file():
        return "it is missing"
    if (size := path.stat().st_size) != file.size:
        return f"it has {size} bytes instead of {file.size}"
    git = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    digest = hashlib.sha256() if file.sha256 else git
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    wanted = file.sha256 or file.blob
    found = digest.hexdigest()
    return None if found == wanted else f"its digest is {found} instead of {wanted}"


@contextmanager
def _explained(dataset: DatasetConfig, folder: Path) -> Iterator[None]:
    """Turns whatever goes wrong on the way to the Hub into a :class:`DownloadError`."""
    what = f"the Hugging Face data set {dataset.hub_id}"
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # The HTTP library under huggingface_hub differs between its versions, so do its errors.
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise DownloadError(
                f"{what} cannot be written to {folder.parent} ({error.strerror}). Set "
                "dataset.cache (or MSEA_CACHE) to a folder with enough space that you may write to."
            ) from error
        remedy = (
            "Check the network connection and run the same command again (it goes on where it "
            "stopped), set HF_ENDPOINT to a mirror"
        )
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403, 404):
            remedy = (
                "It is private, gated, or not there: check dataset.hub_id and dataset.hub_file, or "
                "ask for access on its page and log in with `hf auth login` (or set HF_TOKEN)"
            )
        raise DownloadError(
            f"{what} cannot be fetched: {type(error).__name__}: {first_line(error)}. {remedy}, or "
            f"fetch the files by hand and put them into {folder}."
        ) from error
