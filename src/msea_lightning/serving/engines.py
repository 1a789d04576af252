"""What computes the language model: this process, or a server that reads embeddings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

from msea_lightning.data.utterance import Utterance
from msea_lightning.language.options import Decode
from msea_lightning.plugin import Answer, Predictor
from msea_lightning.serving.batcher import Batcher


class Asked(NamedTuple):
    """An utterance to answer.

    Attributes:
        utterance: With its features (``Predictor.complete``).
        plugin: Name of the plugin.
        decode: How the answer is picked; the plugin's own rule where None.
    """

    utterance: Utterance
    plugin: str
    decode: Decode | None = None


class Engine(ABC):
    """Answers utterances of concurrent callers.

    Attributes:
        predictor: The attached plugins.
        title: What computes the language model, in words.
    """

    predictor: Predictor
    title: str

    @abstractmethod
    async def start(self) -> None:
        """Checks that the engine computes what the plugins were trained on.

        Raises:
            UnavailableError: if it does not answer; it may later.
            EngineError: if it is the wrong one.
        """

    @abstractmethod
    async def answer(self, asked: Sequence[Asked]) -> list[Answer]:
        """The answers, in the order of what is asked.

        Raises:
            UnavailableError: if there is none now.
            EngineError: if the engine computes another language model, or refuses.
            LabelSpaceError: if emotions shall be decoded by ``median`` or ``mean``.
        """

    @abstractmethod
    async def check_health(self) -> None:
        """Raises UnavailableError where :meth:`answer` would, as far as that is known."""

    @abstractmethod
    async def close(self) -> None:
        """Ends what runs; nothing is asked afterwards."""


class LocalEngine(Engine):
    """The language model in this process; concurrent callers share its passes.

    Args:
        predictor: The attached plugins, in front of a whole language model.
        max_batch: Most utterances in a pass.
        observe: Called with the number of utterances of every pass.
    """

    title = "in this process"

    def __init__(
        self,
        predictor: Predictor,
        *,
        max_batch: int,
        observe: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.predictor = predictor
        self._max_batch = max_batch
        self._batcher: Batcher[Asked, Answer] = Batcher(self._predict, max_batch, observe)

    async def start(self) -> None:
        """Nothing is left to check: attaching the plugins has checked the language model."""

    async def check_health(self) -> None:
        """A process that answers is healthy."""

    async def answer(self, asked: Sequence[Asked]) -> list[Answer]:
        """See the base class."""
        return await self._batcher(asked)

    async def close(self) -> None:
        """See the base class."""
        self._batcher.close()

    def _predict(self, asked: Sequence[Asked]) -> list[Answer]:
        """Answers of a batch; those with another rule are another pass."""
        answers: dict[int, Answer] = {}
        for rule in dict.fromkeys(one.decode for one in asked):
            numbers = [number for number, one in enumerate(asked) if one.decode is rule]
            found = self.predictor.predict(
                [asked[number].utterance for number in numbers],
                plugin=[asked[number].plugin for number in numbers],
                decode=rule,
                batch_size=self._max_batch,
            )
            answers.update(zip(numbers, found, strict=True))
        return [answers[number] for number in range(len(asked))]
