"""Floating point operations of an utterance by its length, and the rate of a device."""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from msea_lightning.adapter import Adapter, FeatureStandardizer
from msea_lightning.backbone import FrozenBackbone
from msea_lightning.cost.step import META, StepMeter
from msea_lightning.language.answers import AnswerTree
from msea_lightning.language.prompt import Prompt
from msea_lightning.model.adapted_lm import AdaptedLM

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_SQUARE_GPU, _SQUARE_CPU = 4096, 1024
"""Rows and columns of the matrices that a device's rate is measured with."""

_QUEUED = 8
"""Products that a GPU is given at a time, so that starting them takes no part in the rate."""

_MEASURING = 0.7
"""Seconds of measuring a rate, not counting the first product."""


class UtteranceFlops:
    """Operations for one utterance by the tokens of its text.

    Every product in a transformer is of the first or second degree in the length, so that three
    lengths tell all others, exactly.

    Args:
        meter: Measures the steps of the model.
        training: A training step, not an evaluation.
    """

    def __init__(self, meter: StepMeter, *, training: bool) -> None:
        start, middle, end = (meter.flops(tokens, training=training) for tokens in (1, 2, 3))
        self._start, self._slope, self._bend = start, middle - start, end - 2 * middle + start

    def __call__(self, text: ArrayLike) -> NDArray[np.float64]:
        """Operations at given lengths.

        Args:
            text: Tokens of a text or of many, any shape, cut as the run cuts them.

        Returns:
            As many numbers.
        """
        further = np.asarray(text, dtype=np.float64) - 1
        bend: NDArray[np.float64] = self._bend * further * (further - 1) / 2
        return self._start + self._slope * further + bend


def utterance_flops(
    language: PretrainedConfig,
    adapter: Adapter,
    prompt: Prompt,
    tree: AnswerTree,
    *,
    training: bool,
) -> UtteranceFlops:
    """Operations of a model that is at hand, without running it.

    Args:
        language: Architecture of the language model.
        adapter: The adapter in front of it.
        prompt: The sequence layout.
        tree: The legal answers.
        training: A training step, not an evaluation.

    Raises:
        BackboneError: if the architecture does not run without numbers.
    """
    copied = copy.deepcopy(adapter).to(META)

    def build(frozen: FrozenBackbone) -> AdaptedLM:
        standardizer = FeatureStandardizer().to(META)
        return AdaptedLM(frozen, copied, standardizer=standardizer, prompt=prompt, tree=tree)

    return UtteranceFlops(StepMeter(language, prompt.tokenizer, build, {}), training=training)


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of a device in products of square matrices: the best of several tries.

    It takes about a second, or as long as a few products do.

    Args:
        dtype: What is multiplied.
        device: Where.

    Raises:
        RuntimeError: if a GPU has no room for three such matrices, 100 MB in half precision, and
            what its library needs beside them.
    """
    on_gpu = device.type == "cuda"
    size, products = (_SQUARE_GPU, _QUEUED) if on_gpu else (_SQUARE_CPU, 1)
    # Random numbers, for GPUs multiply zeros faster; of an own generator, which no run draws from.
    own = torch.Generator(device).manual_seed(0)
    left, right = torch.randn(2, size, size, generator=own, dtype=dtype, device=device)
    out = torch.empty_like(left)

    def seconds(products: int) -> float:
        start = time.perf_counter()
        for _ in range(products):
            torch.mm(left, right, out=out)
        if on_gpu:
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    seconds(1)  # loads the library, and chooses the algorithm
    tries = [seconds(products), seconds(products)]
    while sum(tries) < _MEASURING:
        tries.append(seconds(products))
    return 2 * size**3 * products / min(tries)
