"""Low-level descriptors of eGeMAPSv02 with openSMILE: what SIMS-V2 has as audio features.

The core of openSMILE is licensed for research, education and private use alone; commercial use
needs a licence of audEERING. It comes with the extra ``opensmile``.

A frame every 10 ms, of windows of 20 and 60 ms, 16 kHz, 16 bits, as the package ``opensmile`` makes
them. The package processes a whole signal; here the same components read from a ring buffer, into
which the sound is written while it is decoded.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msea_lightning.features.contract import AudioExtractor, FeatureError, Frames
from msea_lightning.features.packages import load_package

LICENCE = (
    "The core of openSMILE is licensed for research, education and private use alone; commercial "
    "use needs a licence of audEERING."
)

_RATE = 16000
_BUFFER = 10 * _RATE
"""Samples of the ring buffer."""

_SMOOTHED = (
    *("Loudness", "alphaRatio", "hammarbergIndex", "slope0-500", "slope500-1500", "spectralFlux"),
    *("mfcc1", "mfcc2", "mfcc3", "mfcc4"),
)
_VOICED = (
    *("F0semitoneFrom27.5Hz", "jitterLocal", "shimmerLocaldB", "HNRdBACF"),
    *("logRelF0-H1-H2", "logRelF0-H1-A3"),
    *(f"F{n}{what}" for n in (1, 2, 3) for what in ("frequency", "bandwidth", "amplitudeLogRelF0")),
)
_COLUMNS = (*(f"{name}_sma3" for name in _SMOOTHED), *(f"{name}_sma3nz" for name in _VOICED))

_CONFIGURATION = """
[componentInstances:cComponentManager]
instance[dataMemory].type=cDataMemory
instance[extsource].type=cExternalAudioSource
instance[lldconcat].type=cVectorConcat
printLevelStats=0

[extsource:cExternalAudioSource]
writer.dmLevel=wave
writer.levelconf.growDyn=0
writer.levelconf.isRb=1
writer.levelconf.nT={buffer}
sampleRate={rate}
nBits=16
channels=1

\\{{{root}/gemaps/v01b/GeMAPSv01b_core.lld.conf.inc}}
\\{{{root}/egemaps/v02/eGeMAPSv02_core.lld.conf.inc}}

[lldconcat:cVectorConcat]
reader.dmLevel=egemapsv02_lldsetE_smo;egemapsv02_lldsetF_smo
writer.dmLevel=lld
\\{{{root}/shared/BufferModeRb.conf.inc}}
includeSingleElementFields=1

\\{{{root}/shared/standard_external_data_output_single.conf.inc}}
"""


class EGeMAPS(AudioExtractor):
    """(L, 25) low-level descriptors of eGeMAPSv02; none of sound shorter than 60 ms."""

    rate = _RATE

    @property
    def columns(self) -> Sequence[str]:
        """The names of openSMILE, such as ``Loudness_sma3``."""
        return _COLUMNS

    def extract(self, blocks: Iterable[NDArray[np.float32]]) -> Frames:
        """(L, 25) frames."""
        frames = bytearray()
        smile = _opensmile()
        smile.external_sink_set_callback(
            "extsink", lambda values: frames.extend(values.astype(np.float32).tobytes())
        )
        run = _Run(smile)
        run.start()
        try:
            for block in blocks:
                run.write(block)
        finally:
            run.finish()
            smile.free()
        if run.error is not None:
            raise FeatureError(f"openSMILE failed: {run.error}.") from run.error
        return np.frombuffer(bytes(frames), np.float32).reshape(-1, len(_COLUMNS))


class _Run(threading.Thread):
    """openSMILE at work, in a thread of its own because it waits for sound.

    Attributes:
        error: What it failed with.
    """

    def __init__(self, smile: Any) -> None:
        super().__init__(daemon=True)
        self._smile = smile
        self.error: Exception | None = None

    def run(self) -> None:
        """Processes until the input ends."""
        try:
            self._smile.run()
        except Exception as error:
            self.error = error

    def write(self, block: NDArray[np.float32]) -> None:
        """Hands sound over; waits while the ring buffer is full."""
        whole = np.clip(block * 32768, -32768, 32767).astype(np.int16)
        for begin in range(0, len(whole), _RATE):
            data = whole[begin : begin + _RATE].tobytes()
            while not self._smile.external_audio_source_write_data("extsource", data):
                if not self.is_alive():
                    return
                time.sleep(0.001)

    def finish(self) -> None:
        """Ends the input and waits for the last frames."""
        self._smile.external_audio_source_set_eoi("extsource")
        self.join()


def _opensmile() -> Any:
    """An openSMILE that reads from a ring buffer, not started yet."""
    package = load_package("opensmile", extra="opensmile", note=LICENCE)
    core = load_package("opensmile.core.lib", extra="opensmile")
    root = Path(package.__file__).parent / "core" / "config"
    smile = core.OpenSMILE()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lld.conf"
        file.write_text(
            _CONFIGURATION.format(buffer=_BUFFER, rate=_RATE, root=root.as_posix()),
            encoding="utf-8",
        )
        buffers = (root / "shared" / "BufferModeRb.conf.inc").as_posix()
        smile.initialize(str(file), {"sinkLevel": "lld", "bufferModeConf": buffers}, loglevel=0)
    return smile
