"""Batches of concurrent callers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from msea_lightning.serving.batcher import Batcher


def test_what_waits_is_computed_together() -> None:
    begun, go = threading.Event(), threading.Event()
    batches: list[list[int]] = []

    def double(items: Sequence[int]) -> list[int]:
        begun.set()
        assert go.wait(10)
        batches.append(list(items))
        return [2 * item for item in items]

    async def main() -> list[list[int]]:
        batcher = Batcher(double, 4, sizes.append)
        first = asyncio.create_task(batcher([0]))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batcher([number, -number])) for number in (1, 2, 3)]
        gone = asyncio.create_task(batcher([9]))
        await asyncio.sleep(0)
        gone.cancel()
        go.set()
        found = await asyncio.gather(first, *others)
        batcher.close()
        return found

    sizes: list[int] = []
    assert asyncio.run(main()) == [[0], [2, -2], [4, -4], [6, -6]]
    assert batches == [[0], [1, -1, 2, -2], [3, -3]]
    assert sizes == [1, 4, 2]


def test_an_error_is_that_of_its_caller_alone() -> None:
    def inverse(items: Sequence[int]) -> list[float]:
        return [1 / item for item in items]

    async def main() -> list[object]:
        batcher = Batcher(inverse, 8, sizes.append)
        calls = (batcher([1]), batcher([0]), batcher([2, 4]))
        found = await asyncio.gather(*calls, return_exceptions=True)
        batcher.close()
        return list(found)

    sizes: list[int] = []
    found = asyncio.run(main())
    assert isinstance(found[1], ZeroDivisionError)
    assert [found[0], found[2]] == [[1.0], [0.5, 0.25]]
    assert sizes == [4]


def test_a_batcher_goes_on_after_it_was_idle() -> None:
    async def main() -> None:
        batcher = Batcher(list, 2)
        for number in range(3):
            assert await batcher([number]) == [number]
            await asyncio.sleep(0)
        assert await batcher([]) == []
        batcher.close()
        with pytest.raises(RuntimeError, match="shutdown"):
            await batcher([1])

    asyncio.run(main())
