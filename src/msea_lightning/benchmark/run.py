"""Runs variants side by side, each in a process of its own, on the same generated data."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import psutil
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from msea_lightning.backbone import backbone_tokenizer
from msea_lightning.backbone.options import Quantization
from msea_lightning.benchmark import BenchError
from msea_lightning.benchmark.generate import generate, write_published
from msea_lightning.benchmark.options import Measured
from msea_lightning.benchmark.results import Results, VariantResult, share_rates
from msea_lightning.benchmark.variant import Timing
from msea_lightning.benchmark.worker import Plan
from msea_lightning.commands.allocator import SETTING
from msea_lightning.config.options import to_typed
from msea_lightning.config.roots import BenchConfig, RunConfig, TrainConfig
from msea_lightning.data.options import SPLITS
from msea_lightning.data.prepare import expected_counts
from msea_lightning.data.store import Store, write_store
from msea_lightning.paper.lengths import SHAPES
from msea_lightning.runs.environment import environment

ORIGINAL, OURS = "original", "ours"

_GRACE = 5
"""Seconds for a process to end by itself."""

_KILLED = -9
"""Exit code of a process that the system has killed."""

_WARM_UP = 2
"""Batches before any are timed."""

_TASKS = {
    Measured.everything: ("train", "evaluate"),
    Measured.train: ("train",),
    Measured.evaluate: ("evaluate",),
    Measured.start: (),
}
"""What is timed in rounds."""


def benchmark(config: BenchConfig) -> Results:
    """Measures all variants.

    Args:
        config: What is measured, and against what.

    Raises:
        BenchError: for a data set whose lengths are not known, or a variant that cannot be run.
        UserError: for options of a variant that do not exist or do not fit.
    """
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
    parts = [f"{config.dataset.name}: {config.adapter.name} on {backbone.name}"]
    parts += [f"width {backbone.hidden_size}"] if backbone.hidden_size else []
    parts += [f"{backbone.num_layers} layers"] if backbone.num_layers else []
    parts.append(f"batch {config.training.batch_size}")
    parts.append(f"{bench.rounds} rounds of {bench.steps} batches")
    return ", ".join(parts)


# ---- variants --------------------------------------------------------------------------------


def _options(config: BenchConfig, variant: str) -> TrainConfig:
    """The options of a variant."""
    shared = {item.name: getattr(config, item.name) for item in dataclasses.fields(RunConfig)}
    if variant == ORIGINAL:
        _check_original(config)
    if variant in (ORIGINAL, OURS):
        return TrainConfig(**shared)

    def refused(why: str) -> BenchError:
        return BenchError(f"bench.compare: {variant!r} {why}")

    words = variant.split("+")
    if not all("=" in word for word in words):
        raise refused(
            f"is neither {ORIGINAL} nor {OURS}, nor options, such as in "
            "'bench.compare=[ours,\"backbone.dtype=bfloat16\"]', joined by '+'."
        )
    try:
        changed = OmegaConf.merge(
            OmegaConf.structured(TrainConfig(**shared)), OmegaConf.from_dotlist(words)
        )
    except OmegaConfBaseException as error:
        raise refused(
            f"is no option: {str(error).strip().splitlines()[0]}. A variant has options of "
            "python -m msea_lightning.train, such as backbone.dtype=bfloat16; choices of whole "
            "groups, such as adapter=mag, go on the command line and hold for all variants."
        ) from error
    for word in words:
        if (part := word.partition("=")[0].partition(".")[0]) not in shared:
            raise refused(
                f"is of no use: {part} changes nothing of what is measured. Variants have options "
                f"of {', '.join(sorted(shared))}."
            )
    options = to_typed(changed, TrainConfig)  # type: ignore[arg-type]
    if (options.dataset.name, options.dataset.path) != (config.dataset.name, config.dataset.path):
        raise refused(
            "has other data, but all variants read the same generated data. Leave dataset.name and "
            "dataset.path out."
        )
    return options


def _check_original(config: BenchConfig) -> None:
    """Refuses to measure the original with what it does not have."""
    lacks = {
        f"adapter={config.adapter.name}": config.adapter.name != "mse",
        f"ablation={config.ablation.name}": not config.ablation.text,
        f"trainer.devices={config.trainer.devices}": config.trainer.devices > 1,
        f"backbone.quantization={config.backbone.quantization.value}": (
            config.backbone.quantization is not Quantization.none
        ),
    }
    if any(lacks.values()):
        given = [option for option, lacking in lacks.items() if lacking]
        raise BenchError(
            "bench.compare: the variant 'original' has the adapter mse with its text, one device "
            f"and no quantisation; here: {', '.join(given)}. Leave original out, or give devices "
            "and quantisation to one variant: "
            "'bench.compare=[original,\"backbone.quantization=int8\"]'."
        )


# ---- data ------------------------------------------------------------------------------------


def _generate(config: BenchConfig, folder: Path) -> str | None:
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
    return str(write_published(Store.open(folder / "store"), dataset, target))


# ---- measuring -------------------------------------------------------------------------------


def _measure(
    config: BenchConfig, runs: Mapping[str, TrainConfig], folder: Path, published: str | None
) -> list[VariantResult]:
    """Lets variants take turns: a round of one, a round of the next."""
    bench, timed = config.bench, _TASKS[config.bench.measure]
    # The rounds take different batches: their offsets lie evenly around the middle.
    offsets = [(2 * number + 1) / (2 * bench.rounds) for number in range(bench.rounds)]
    results: dict[str, VariantResult] = {}
    workers: dict[str, _Worker] = {}
    with ExitStack() as stack:
        for name, options in runs.items():
            batch = options.training.batch_size
            per_step = {"train": ("steps", 1), "evaluate": ("utterances", batch)}
            tasks: list[tuple[str, dict[str, Any]]] = [("start", {})]
            for task in timed:
                unit, each = per_step[task]
                tasks.append((task, {unit: _WARM_UP * each}))
                tasks += [(task, {unit: bench.steps * each, "offset": at}) for at in offsets]
            tasks.append(("peak", {}))
            alone = options.trainer.devices == 1
            tasks += [("stages", {}), ("rate", {})] if timed and alone else []
            plain: Any = OmegaConf.to_container(OmegaConf.structured(options), enum_to_str=True)
            plan = Plan(name, plain, str(folder / "store"), published, tasks, time.time())
            workers[name] = stack.enter_context(_worker(plan, folder))
            # One after the other, because loading several at a time would slow each of them.
            results[name] = VariantResult(name, **workers[name].next_answer())
        for task in timed:
            for worker in workers.values():
                worker.next_answer()  # the warm-up
            for _ in range(bench.rounds):
                for name, worker in workers.items():
                    timing = Timing(**worker.next_answer())
                    results[name].rounds.setdefault(task, []).append(timing)
        for name, worker in workers.items():
            results[name].peak = worker.next_answer()
            if worker.tasks:
                stages = worker.next_answer()
                results[name].stages = {task: stages[task] for task in timed}
                results[name].rate = worker.next_answer()
    return list(results.values())


class _Worker:
    """The process of a variant.

    Attributes:
        tasks: Names of the tasks that are left.
    """

    def __init__(self, plan: Plan, process: subprocess.Popen[str], log: Path) -> None:
        self.tasks = [task for task, _ in plan.tasks]
        self.process = process
        self._variant = plan.variant
        self._log = log

    def next_answer(self) -> Any:
        """Lets the process do the next task of its plan.

        Raises:
            BenchError: if it failed.
        """
        requests, answers = self.process.stdin, self.process.stdout
        assert requests is not None
        assert answers is not None
        task, line = self.tasks.pop(0), ""
        with suppress(BrokenPipeError):  # it has ended; why, is said below
            requests.write("\n")
            requests.flush()
            line = answers.readline()
        if not line:
            code = self.process.wait()
            last = self._log.read_text("utf-8", errors="replace").strip().splitlines()[-8:]
            killed = " (killed, perhaps for lack of memory)" if code == _KILLED else ""
            raise BenchError(
                f"the variant {self._variant!r} ended during '{task}' with exit code {code}"
                f"{killed}. It said last: {' / '.join(last) or 'nothing'}"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise BenchError(f"the variant {self._variant!r}: {answer['error']}")
        return answer["result"]


@contextmanager
def _worker(plan: Plan, folder: Path) -> Iterator[_Worker]:
    """Starts the process of a variant, and ends it."""
    number = len(list(folder.glob("plan-*")))
    file, log = folder / f"plan-{number}.json", folder / f"log-{number}.txt"
    file.write_text(json.dumps(dataclasses.asdict(plan)), encoding="utf-8")
    # Our commands set it at their start, and the original knows nothing of it.
    setting = "0" if plan.variant == ORIGINAL else os.environ.get(SETTING, "1")
    with log.open("w", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "msea_lightning.benchmark.worker", str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, SETTING: setting},
            # Ctrl-C ends this process, which then ends the others.
            start_new_session=True,
        )
    try:
        yield _Worker(plan, process, log)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=_GRACE)
        except subprocess.TimeoutExpired:
            # Several devices wait for each other in the middle of a step.
            for member in (process, *psutil.Process(process.pid).children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            process.communicate()
