"""Runs variants side by side, each in a process of its own, on the same generated data."""

from __future__ import annotations

import dataclasses
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from msea_lightning.adapter.options import ADAPTERS
from msea_lightning.backbone import backbone_tokenizer
from msea_lightning.backbone.options import Quantization
from msea_lightning.benchmark import BenchError
from msea_lightning.benchmark.generate import generate, write_published
from msea_lightning.benchmark.results import Results, VariantResult, share_rates
from msea_lightning.benchmark.worker import ORIGINAL, work
from msea_lightning.config.errors import first_line
from msea_lightning.config.options import to_typed
from msea_lightning.config.roots import BenchConfig, RunConfig, TrainConfig
from msea_lightning.data.options import SPLITS
from msea_lightning.data.prepare import expected_counts
from msea_lightning.data.store import Store, write_store
from msea_lightning.paper.lengths import SHAPES
from msea_lightning.runs.environment import environment

_GRACE = 5
"""Seconds for a process to end by itself."""

_WARM_UP = 2
"""Batches before any are timed."""


def benchmark(config: BenchConfig) -> Results:
    """Measures all variants."""
    if config.dataset.name not in SHAPES:
        raise BenchError(
            f"bench.shape={config.dataset.name}: only the lengths of {', '.join(SHAPES)} are "
            "known. Choose the one that is most like it."
        )
    runs = {name: _options(config, name) for name in config.bench.compare}
    groups = [runs] if config.bench.together else [{name: run} for name, run in runs.items()]
    with tempfile.TemporaryDirectory(prefix="msea-bench-") as name:
        folder = Path(name)
        published = _generate(config, folder)
        variants = [
            found for group in groups for found in _measure(config, group, folder, published)
        ]
    share_rates(variants)
    options = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    return Results(_title(config), cast("dict[str, Any]", options), environment(), variants)


def _title(config: BenchConfig) -> str:
    backbone, bench = config.backbone, config.bench
    width, layers = backbone.hidden_size or "full width", backbone.num_layers or "all layers"
    adapter = ADAPTERS.title(config.adapter.name)
    return (
        f"{config.dataset.name}: {adapter} on {backbone.name} ({width} x {layers}), "
        f"batch {config.training.batch_size}, {bench.rounds} rounds of {bench.steps} batches"
    )


# ---- variants --------------------------------------------------------------------------------


def _options(config: BenchConfig, variant: str) -> TrainConfig:
    """The options of a variant."""
    shared = {item.name: getattr(config, item.name) for item in dataclasses.fields(RunConfig)}
    if variant == ORIGINAL:
        _check_original(config)
    words = [] if variant in (ORIGINAL, "ours") else variant.split("+")

    def refused(why: str) -> BenchError:
        return BenchError(f"bench.compare: {variant!r} {why}")

    if not all("=" in word for word in words):
        raise refused(
            f"is neither {ORIGINAL} nor ours, nor options, such as in "
            "'bench.compare=[ours,\"backbone.dtype=bfloat16\"]', joined by '+'."
        )
    try:
        changed = OmegaConf.merge(
            OmegaConf.structured(RunConfig(**shared)), OmegaConf.from_dotlist(words)
        )
    except OmegaConfBaseException as error:
        raise refused(
            f"is no option: {first_line(error)}. A variant has options of what is measured, such "
            "as backbone.dtype=bfloat16; choices of whole groups, such as adapter=mag, go on the "
            "command line and hold for all variants."
        ) from error
    options = to_typed(changed, RunConfig)  # type: ignore[arg-type]
    fixed = (config.dataset.name, config.dataset.path, 1)
    if (options.dataset.name, options.dataset.path, options.trainer.ranks) != fixed:
        raise refused(
            "has other data or several devices, but all variants read the same generated data, "
            "each on one device. Leave dataset.name, dataset.path and trainer.devices out."
        )
    return TrainConfig(**vars(options))


def _check_original(config: BenchConfig) -> None:
    """Refuses to measure the original with what it does not have."""
    quantization = config.backbone.quantization
    lacks = {
        f"adapter={config.adapter.name}": config.adapter.name != "mse",
        f"ablation={config.ablation.name}": not config.ablation.text,
        f"backbone.quantization={quantization.value}": quantization is not Quantization.none,
    }
    if given := [option for option, lacking in lacks.items() if lacking]:
        raise BenchError(
            "bench.compare: the variant 'original' has the adapter mse with its text and no "
            f"quantisation; here: {', '.join(given)}. Leave original out, or give quantisation to "
            "one variant: 'bench.compare=[original,\"backbone.quantization=int8\"]'."
        )


# ---- data ------------------------------------------------------------------------------------


def _generate(config: BenchConfig, folder: Path) -> Path | None:
    """Writes the data to ``store``; as they are published too, if that is to be read, and where."""
    dataset, bench = config.dataset, config.bench
    expected = expected_counts(dataset)
    wanted = dict.fromkeys(SPLITS, bench.eval_utterances) | {"train": bench.utterances}
    counts = {split: wanted[split] or expected[split] or 0 for split in SPLITS}
    tokenizer = backbone_tokenizer(
        config.backbone.path,
        tokenizer=config.backbone.tokenizer,
        weights=config.backbone.weights,
        special_tokens=config.backbone.special_tokens,
    )
    utterances = generate(dataset, tokenizer, counts, seed=config.seed)
    write_store(folder / "store", utterances, info={"generated": dataset.name})
    if ORIGINAL not in bench.compare:
        return None
    target = folder / "published"
    target.mkdir()
    return write_published(Store.open(folder / "store"), dataset, target)


# ---- measuring -------------------------------------------------------------------------------


def _measure(
    config: BenchConfig, runs: Mapping[str, TrainConfig], folder: Path, published: Path | None
) -> list[VariantResult]:
    """Lets variants take turns: a round of one, a round of the next."""
    bench, chosen = config.bench, config.bench.measure.value
    timed = [task for task in ("train", "evaluate") if chosen in ("everything", task)]
    # The rounds take different batches: their offsets lie evenly around the middle.
    offsets = [(2 * number + 1) / (2 * bench.rounds) for number in range(bench.rounds)]
    results: dict[str, VariantResult] = {}
    workers: dict[str, Callable[..., Any]] = {}
    with ExitStack() as stack:
        for name, options in runs.items():
            log = folder / f"log-{len(workers)}.txt"
            arguments = (name, options, folder / "store", published, time.time())
            workers[name] = stack.enter_context(_worker(log, *arguments))
            # One after the other, because loading several at a time would slow each of them.
            results[name] = VariantResult(name, **workers[name]("start"))
        for task in timed:
            for ask in workers.values():
                ask(task, batches=_WARM_UP)
            for offset in offsets:
                for name, ask in workers.items():
                    timing = ask(task, batches=bench.steps, offset=offset)
                    results[name].rounds.setdefault(task, []).append(timing)
        for name, ask in workers.items():
            results[name].peak = ask("peak")
            if timed:
                stages = ask("stages")
                results[name].stages = {task: stages[task] for task in timed}
                results[name].rate = ask("rate")
    return list(results.values())


@contextmanager
def _worker(log: Path, variant: str, *arguments: Any) -> Iterator[Callable[..., Any]]:
    """Starts the process of a variant (:func:`.worker.work`), and ends it.

    What it yields lets the process do a task, with keyword arguments, and returns the result.
    """
    log.touch()
    spawn = multiprocessing.get_context("spawn")
    channel, theirs = spawn.Pipe()
    process = spawn.Process(target=work, args=(theirs, log, variant, *arguments))
    process.start()
    theirs.close()

    def ask(task: str, **options: Any) -> Any:
        try:
            channel.send((task, options))
            result, error = channel.recv()
        except (EOFError, OSError) as gone:
            process.join()
            last = log.read_text("utf-8", errors="replace").strip().splitlines()[-8:]
            killed = " (killed, perhaps for lack of memory)" if process.exitcode == -9 else ""
            raise BenchError(
                f"the variant {variant!r} ended during '{task}' with exit code {process.exitcode}"
                f"{killed}. It said last: {' / '.join(last) or 'nothing'}"
            ) from gone
        if error is not None:
            raise BenchError(f"the variant {variant!r}: {error}")
        return result

    try:
        yield ask
    finally:
        process.terminate()
        process.join(_GRACE)
        process.kill()
        process.join()
