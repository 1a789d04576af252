"""What a file really is, where it is not what its name says, and what to do about it."""

from __future__ import annotations

from pathlib import Path

_HUB = ", or from the Hugging Face Hub with dataset.download=true"
_WEB_PAGE = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<script")
_TORCH_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19."  # first pickle of torch.save before PyTorch 1.6
_OTHERS = {
    b"PK\x03\x04": "a zip archive, not a pickle. Unpack it first",
    b"\x1f\x8b": "a gzip archive, not a pickle. Unpack it first",
    b"\x93NUMPY": "a NumPy array (.npy), not a pickle. Check dataset.reader",
    b"\x89HDF": "an HDF5 file, not a pickle. Save its arrays in the layout of dataset=table",
}
WRITTEN_AS_TEXT = (
    "was transferred in text mode: every line feed in it became carriage return and line feed, "
    "which damages a pickle. Fetch it again in binary mode (FTP: `binary`; git: `*.pkl -text` in "
    ".gitattributes)"
)


def stand_in(path: Path) -> str | None:
    """What was saved in place of any file and what to do, as the end of a sentence; else None."""
    head = _head(path)
    if not head:
        return "is empty (0 bytes). Fetch the file again"
    if head.startswith(b"version https://git-lfs"):
        return f"is a git-LFS pointer of {len(head)} bytes. Fetch it with `git lfs pull`{_HUB}"
    if head.lstrip().lower().startswith(_WEB_PAGE):
        return f"is a web page. Fetch the file through its download link{_HUB}"
    return None


def instead_of_pickle(path: Path) -> str | None:
    """Likewise for a pickle: also other formats."""
    head = _head(path)
    # A file of torch.save is a zip archive with a pickle in it, whose name comes first.
    if _TORCH_MAGIC in head[:20] or (head.startswith(b"PK") and b"data.pkl" in head[:256]):
        load = f"torch.load({str(path)!r}, map_location='cpu', weights_only=True)"
        return (
            f"is a file of torch.save, not a pickle of NumPy arrays. {_conversion(path, load)}\n"
            "Where PyTorch refuses what the file holds besides tensors, weights_only=False loads "
            "it, and runs any program in it: only for files whose maker you trust"
        )
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            return f"is {name}"
    return stand_in(path)


def spoilt_by_text_mode(path: Path) -> str | None:
    """Whether a text-mode transfer explains that a pickle cannot be read; what to do then."""
    # A binary pickle has line feeds by chance, and hardly ever four with a return before each.
    head = _head(path)
    return WRITTEN_AS_TEXT if 4 <= head.count(b"\n") == head.count(b"\r\n") else None


def tensor_remedy(path: Path) -> str:
    """What to do about a pickle of PyTorch tensors."""
    load = f"pickle.loads(Path({str(path)!r}).read_bytes())"
    return (
        f"holds PyTorch tensors, and this reader knows NumPy arrays. {_conversion(path, load)}\n"
        "They run any program in the file: only for files whose maker you trust."
    )


def _conversion(path: Path, load: str) -> str:
    target = str(path.with_name(f"{path.stem}_numpy.pkl"))
    return (
        "These two lines of Python convert it:\n"
        "    import pickle, torch; from pathlib import Path; from torch.utils._pytree import "
        "tree_map\n"
        f"    Path({target!r}).write_bytes(pickle.dumps(tree_map(lambda x: x.detach().numpy() "
        f"if isinstance(x, torch.Tensor) else x, {load})))"
    )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1 << 16)
