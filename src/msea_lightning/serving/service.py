"""What the server does with utterances: checks, clips, the engine, limits and counters."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from msea_lightning.data.utterance import Utterance
from msea_lightning.language.answers import check_rule
from msea_lightning.language.options import Decode
from msea_lightning.plugin import Answer
from msea_lightning.serving.engines import Asked, Engine
from msea_lightning.serving.errors import UnavailableError
from msea_lightning.serving.metrics import Metrics


class Service:
    """Answers utterances of concurrent callers.

    Args:
        engine: What computes the language model.
        metrics: Counters.
        max_waiting: Most requests at a time; the next ones are turned away.

    Attributes:
        engine: The engine.
        metrics: The counters.
    """

    def __init__(self, engine: Engine, metrics: Metrics, *, max_waiting: int) -> None:
        self.engine = engine
        self.metrics = metrics
        self._max_waiting = max_waiting
        self._waiting = 0
        # Networks that read faces compute in one thread.
        self._clips = ThreadPoolExecutor(1, thread_name_prefix="clips")

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place among the requests that are answered; UnavailableError where all are taken."""
        if self._waiting >= self._max_waiting:
            raise UnavailableError(
                f"{self._waiting} requests are being answered already: try again in a second."
            )
        self._waiting += 1
        try:
            with self.metrics.waiting.track_inprogress(), self.metrics.seconds.time():
                yield
        finally:
            self._waiting -= 1

    async def answer(
        self, utterances: Sequence[Utterance], plugin: str, decode: Decode | None
    ) -> list[Answer]:
        """The answers about utterances, in their order.

        Raises:
            DataError: if one does not fit the plugin.
            LabelSpaceError: if emotions shall be decoded by ``median`` or ``mean``.
            MediaError: if a clip cannot be read.
            UnavailableError: if the engine is down.
            EngineError: if it is the wrong one.
        """
        # What does not fit is refused here: in a batch, others would wait while it is found.
        if decode is not None:
            check_rule(self.engine.predictor.models[plugin].space, decode)
        complete = [await self._completed(utterance, plugin) for utterance in utterances]
        asked = [Asked(utterance, plugin, decode) for utterance in complete]
        answers = await self.engine.answer(asked)
        self.metrics.utterances.labels(plugin).inc(len(answers))
        return answers

    async def close(self) -> None:
        """Waits for the clip that is being read, and ends the engine."""
        self._clips.shutdown(cancel_futures=True)
        await self.engine.close()

    async def _completed(self, utterance: Utterance, plugin: str) -> Utterance:
        predictor = self.engine.predictor
        if utterance.clip is None:
            return predictor.complete(utterance, plugin=plugin)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._clips, lambda: predictor.complete(utterance, plugin=plugin)
        )
