"""Downloads against a small server that answers as the Hugging Face Hub does."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from msea_lightning.data.files.download import DownloadError, download
from msea_lightning.data.options import DatasetConfig, Reader
from msea_lightning.data.prepare import prepare_store
from tests.data.published import COUNTS, write_dialogue

REPOSITORY = "AZYoung/MELD_processed"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DATASET = DatasetConfig(name="meld", reader=Reader.dialogue, hub_id=REPOSITORY)


@dataclass
class Hub:
    """What the server has, what it does wrong, and what it was asked.

    Attributes:
        files: Contents by name. Names that end in .pkl are large files, marked with their SHA-256.
        status: Answer every request with this instead.
        breaks: File by name -> how many bytes to send before each break of the connection; used up
            one by one.
        failing: Files whose contents are answered with 503.
        sent: File by name -> other content than the one announced.
        asked: Requests: method, path, Range header.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    status: int | None = None
    breaks: dict[str, list[int]] = field(default_factory=dict)
    failing: set[str] = field(default_factory=set)
    sent: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)

    def ranges(self, name: str) -> list[str | None]:
        """The Range headers of the requests for a file's content."""
        return [asked[2] for asked in self.asked if asked[0] == "GET" and asked[1].endswith(name)]


def about(name: str, content: bytes) -> dict[str, Any]:
    """What the Hub's list says of a file."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    large = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 9}
    lfs = {"lfs": large} if name.endswith(".pkl") else {}
    return {"rfilename": name, "size": len(content), "blobId": blob, **lfs}


class Handler(BaseHTTPRequestHandler):
    """Answers the requests that huggingface_hub makes for a data set and its files."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.asked.append((self.command, self.path, self.headers.get("Range")))
        path = self.path.split("?")[0]
        if self.hub.status is not None:
            self.answer(self.hub.status, b'{"error": "no"}', {"X-Error-Message": "no"})
        elif path == f"/api/datasets/{REPOSITORY}/revision/main":
            siblings = [about(name, content) for name, content in self.hub.files.items()]
            info = {"id": REPOSITORY, "sha": COMMIT, "siblings": siblings, "tags": []}
            self.answer(200, json.dumps(info).encode())
        elif path.startswith(f"/datasets/{REPOSITORY}/resolve/{COMMIT}/"):
            self.answer_file(path.split("/", 6)[-1])
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def answer_file(self, name: str) -> None:
        if name not in self.hub.files:
            self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        content = self.hub.files[name]
        headers = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if self.command == "GET" and name in self.hub.failing:
            self.answer(503, b"{}")
            return
        if self.command == "GET":
            content = self.hub.sent.get(name, content)
        status = 200
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted:
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            status, content = 206, content[start:]
        breaks = self.hub.breaks.get(name)
        if self.command == "GET" and breaks:
            self.answer(status, content, headers, stop=breaks.pop(0))
        else:
            self.answer(status, content, headers)

    def answer(
        self,
        status: int,
        content: bytes,
        headers: dict[str, str] | None = None,
        stop: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content[:stop])
        if stop is not None:
            self.wfile.flush()
            self.close_connection = True


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    hub.files = {f"meld_{split}.pkl": split.encode() * 2000 for split in ("train", "valid", "test")}
    hub.files |= {"README.md": b"# MELD", ".gitattributes": b"*.pkl filter=lfs"}
    handler = type("Bound", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1)
    yield hub
    huggingface_hub.close_session()  # else connections wait for the server that is going
    server.shutdown()
    server.server_close()
    thread.join()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def data_of(hub: Hub) -> dict[str, bytes]:
    return {name: content for name, content in hub.files.items() if name.endswith(".pkl")}


def test_preparation_fetches_what_is_missing_and_then_needs_no_network(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_dialogue(tmp_path / "published", "meld")
    hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    dataset = dataclasses.replace(DATASET, download=True, cache=str(tmp_path / "cache"))
    store = prepare_store(dataset)
    assert {split: len(part) for split, part in store.splits.items()} == COUNTS
    assert store.info["source"] == str(tmp_path / "cache" / "downloads" / "meld")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert prepare_store(dataset).folder == store.folder


def test_all_data_files_are_fetched_once(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "downloads" / "meld"
    assert download(DATASET, folder) == folder
    assert contents(folder) == data_of(hub)
    assert not folder.with_name("meld.partial").exists()
    hub.asked.clear()
    download(DATASET, folder)
    assert not [path for method, path, _ in hub.asked if method == "GET" and "resolve" in path]


def test_one_file_is_fetched_where_one_is_named(hub: Hub, tmp_path: Path) -> None:
    dataset = DatasetConfig(name="m", hub_id=REPOSITORY, hub_file="meld_test.pkl")
    download(dataset, tmp_path / "m")
    assert list(contents(tmp_path / "m")) == ["meld_test.pkl"]
    dataset = DatasetConfig(name="m", hub_id=REPOSITORY, hub_file="other.pkl")
    with pytest.raises(DownloadError, match=r"has no other\.pkl; it has meld_train\.pkl, meld_val"):
        download(dataset, tmp_path / "m")


def test_files_in_folders_and_small_files_keep_their_names(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"data/dev/a.json": b'{"a": 1}', "empty.txt": b""}
    download(DATASET, tmp_path / "meld")
    assert (tmp_path / "meld" / "empty.txt").read_bytes() == b""
    assert (tmp_path / "meld" / "data" / "dev" / "a.json").read_bytes() == b'{"a": 1}'


def test_a_broken_connection_is_resumed_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    hub.breaks = {"meld_train.pkl": [4000]}
    download(DATASET, tmp_path / "meld")
    assert hub.ranges("meld_train.pkl") == [None, "bytes=4000-"]
    assert contents(tmp_path / "meld") == data_of(hub)


def test_an_interrupted_download_goes_on_in_the_next_run(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    hub.breaks = {"meld_valid.pkl": [4000]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.time.sleep", kill)
        with pytest.raises(Killed):
            download(DATASET, tmp_path / "meld")
    assert contents(tmp_path / "meld") == {"meld_train.pkl": hub.files["meld_train.pkl"]}
    with caplog.at_level(logging.INFO):
        download(DATASET, tmp_path / "meld")
    assert hub.ranges("meld_valid.pkl") == [None, "bytes=4000-"]
    assert hub.ranges("meld_train.pkl") == [None]
    assert "continuing meld_valid.pkl at 4000 of 10000 bytes" in caplog.text
    assert contents(tmp_path / "meld") == data_of(hub)


def test_a_part_of_another_version_is_not_continued(hub: Hub, tmp_path: Path) -> None:
    hub.failing = {"meld_test.pkl"}
    with pytest.raises(DownloadError, match="503"):
        download(DATASET, tmp_path / "meld")
    hub.failing = set()
    hub.files["meld_test.pkl"] = b"new" * 3000
    download(DATASET, tmp_path / "meld")
    assert contents(tmp_path / "meld") == data_of(hub)


def test_a_file_that_has_changed_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    download(DATASET, tmp_path / "meld")
    (tmp_path / "meld" / "meld_test.pkl").write_bytes(b"cut")
    download(DATASET, tmp_path / "meld")
    assert contents(tmp_path / "meld") == data_of(hub)


def test_another_content_of_the_same_size_is_refused(hub: Hub, tmp_path: Path) -> None:
    size = len(hub.files["meld_train.pkl"])
    hub.sent = {"meld_train.pkl": b"x" * size}
    with pytest.raises(DownloadError, match=r"meld_train\.pkl arrived damaged: its digest is "):
        download(DATASET, tmp_path / "meld")
    assert not (tmp_path / "meld").exists()
    hub.sent = {}
    download(DATASET, tmp_path / "meld")
    assert contents(tmp_path / "meld") == data_of(hub)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"short", r"file should be of size 10000 but has size 5 \(meld_train\.pkl\)"),
        (b"x" * 99_000, r"file should be of size 10000 but has size 99000 \(meld_train\.pkl\)"),
    ],
)
def test_another_size_is_refused(hub: Hub, tmp_path: Path, sent: bytes, reason: str) -> None:
    hub.sent = {"meld_train.pkl": sent}
    with pytest.raises(DownloadError, match=reason):
        download(DATASET, tmp_path / "meld")
    assert not (tmp_path / "meld").exists()
    hub.sent = {}
    for _ in range(2):
        with suppress(DownloadError):  # what was received first is found to be wrong
            download(DATASET, tmp_path / "meld")
    assert contents(tmp_path / "meld") == data_of(hub)


def test_a_connection_that_breaks_again_and_again_gets_there(hub: Hub, tmp_path: Path) -> None:
    hub.breaks = {"meld_train.pkl": [10, 0, 0, 500, 0, 0, 0, 1, 0, 0, 0, 7]}
    download(DATASET, tmp_path / "meld")
    assert contents(tmp_path / "meld") == data_of(hub)
    assert hub.ranges("meld_train.pkl")[-1] == "bytes=518-"


def test_a_connection_that_breaks_for_good_is_given_up(hub: Hub, tmp_path: Path) -> None:
    hub.breaks = {"meld_train.pkl": [10] + [0] * 99}
    with pytest.raises(DownloadError, match="it goes on where it stopped"):
        download(DATASET, tmp_path / "meld")
    assert len(hub.ranges("meld_train.pkl")) == 6


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, r"401 .* It is private, gated, or not there: .* `hf auth login`"),
        (403, r"403 .* It is private, gated, or not there: "),
        (404, r"404 .* It is private, gated, or not there: check dataset\.hub_id"),
        (500, r"500 .* run the same command again"),
    ],
)
def test_refusals_of_the_hub_are_explained(
    hub: Hub, tmp_path: Path, status: int, reason: str
) -> None:
    hub.status = status
    with pytest.raises(DownloadError, match=reason) as error:
        download(DATASET, tmp_path / "meld")
    assert "AZYoung/MELD_processed" in str(error.value)
    assert f"put them into {tmp_path / 'meld'}" in str(error.value)
    assert "\n" not in str(error.value)


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens on the discard port
    with pytest.raises(DownloadError, match=r"cannot be fetched: .* Check the network connection"):
        download(DATASET, tmp_path / "meld")


def test_offline_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with pytest.raises(DownloadError, match="unset the `HF_HUB_OFFLINE`"):
        download(DATASET, tmp_path / "meld")
    huggingface_hub.close_session()


def test_a_full_disk_is_named(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("msea_lightning.data.files.download.http_get", full)
    with pytest.raises(DownloadError, match=r"cannot be written to .* \(No space left on device\)"):
        download(DATASET, tmp_path / "meld")


def test_a_folder_that_cannot_be_written(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadError, match="AZYoung/MELD_processed cannot be"):
        download(DATASET, tmp_path / "file" / "downloads" / "meld")


def test_a_name_that_leaves_the_folder_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"../evil.pkl": b"x"}
    with pytest.raises(DownloadError, match=r"a file called '\.\./evil\.pkl'"):
        download(DATASET, tmp_path / "a" / "meld")
    assert not list(tmp_path.rglob("evil*"))
