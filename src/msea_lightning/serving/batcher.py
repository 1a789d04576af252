"""Collecting what several callers wait for into batches."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Computes items of concurrent callers in batches, one batch at a time in a thread.

    Nothing waits for a batch to fill: what has come while one batch was computed is the next. Of a
    batch that fails each item is computed alone, so that a caller's error is its own.

    Args:
        compute: From a batch to as many results; called in one thread only.
        size: Most items in a batch.
        observe: Called with the number of items of every batch; items of one that failed are not
            counted again.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Item]], Sequence[Result]],
        size: int,
        observe: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._compute = compute
        self._size = size
        self._observe = observe
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batcher")
        self._work: asyncio.Task[None] | None = None

    async def __call__(self, items: Sequence[Item]) -> list[Result]:
        """The results of items, in their order; raises what the first that failed raised."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Result]] = [loop.create_future() for _ in items]
        self._waiting.extend(zip(items, futures, strict=True))
        if self._work is None or self._work.done():
            self._work = loop.create_task(self._run())
        found = await asyncio.gather(*futures, return_exceptions=True)
        results: list[Result] = []
        for result in found:
            if isinstance(result, BaseException):
                raise result
            results.append(result)
        return results

    def close(self) -> None:
        """Waits for the batch that is being computed, and takes no more."""
        self._thread.shutdown(cancel_futures=True)

    async def _run(self) -> None:
        while self._waiting:
            count = min(self._size, len(self._waiting))
            taken = [self._waiting.popleft() for _ in range(count)]
            # A caller that has given up is not computed for.
            batch = [(item, future) for item, future in taken if not future.done()]
            if batch:
                self._observe(len(batch))
                await self._answer(batch)

    async def _answer(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        loop = asyncio.get_running_loop()
        items = [item for item, _ in batch]
        try:
            results = await loop.run_in_executor(self._thread, self._compute, items)
        except Exception as error:
            if len(batch) > 1:
                for one in batch:
                    await self._answer([one])
            elif not batch[0][1].done():
                batch[0][1].set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
