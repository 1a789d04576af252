"""Runs variants side by side, each in a process of its own, on the same generated data."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from msea_lightning.backbone import backbone_tokenizer
from msea_lightning.backbone.options import Quantization
from msea_lightning.benchmark.options import Measured
from msea_lightning.benchmark.shapes import generate, write_published
from msea_lightning.benchmark.subject import Material, Round
from msea_lightning.benchmark.worker import Order
from msea_lightning.commands.allocator import SETTING
from msea_lightning.config.errors import UserError
from msea_lightning.config.options import to_typed
from msea_lightning.config.roots import BenchConfig, RunConfig, TrainConfig
from msea_lightning.data.options import SPLITS
from msea_lightning.data.prepare import expected_counts
from msea_lightning.data.store import write_store
from msea_lightning.paper.lengths import SHAPES
from msea_lightning.runs.environment import environment

ORIGINAL, OURS = "original", "ours"

_KILLED = " (killed, perhaps for want of memory)"

_PATIENCE = 5
"""Seconds for a process to end by itself."""

_FLOAT = 4
"""Bytes of a number in the data."""

_TURNS = {
    Measured.everything: ("train", "evaluate"),
    Measured.train: ("train",),
    Measured.evaluate: ("evaluate",),
    Measured.start: (),
}
"""What is measured in rounds."""


class BenchError(UserError):
    """A benchmark that cannot be run."""


@dataclass
class Variant:
    """What was measured of a variant.

    Attributes:
        name: As in ``bench.compare``.
        device: Where it ran.
        start: Seconds from the start of its process to the end of the first training step.
        start_stages: Seconds of the stages of that.
        start_resident: Bytes of the device's memory that it held then.
        weights: Bytes of the language model's weights.
        peak: Most bytes that it held at any time; of several devices, the first one's process.
        rounds: Rounds by what was done, ``train`` and ``evaluate``.
        stages: Seconds of the stages of a step, by what was done.
        dtype: What its language model computes in.
        rate: Operations per second of a product of large matrices in the same dtype, the best that
            any variant on such a device found; None where it was not measured.
    """

    name: str
    device: str = ""
    start: float = 0.0
    start_stages: dict[str, float] = field(default_factory=dict)
    start_resident: int = 0
    weights: int = 0
    peak: int = 0
    rounds: dict[str, list[Round]] = field(default_factory=dict)
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    dtype: str = ""
    rate: float | None = None


@dataclass(frozen=True)
class Comparison:
    """All variants.

    Attributes:
        title: What was measured, in a line.
        options: What was measured, all of it.
        environment: Versions and hardware.
        variants: The variants; the first is what the others are compared with.
    """

    title: str
    options: dict[str, Any]
    environment: dict[str, Any]
    variants: list[Variant]


def compare(config: BenchConfig) -> Comparison:
    """Measures all variants.

    Args:
        config: What is measured, and against what.

    Raises:
        BenchError: for a data set whose lengths are not known, a variant that cannot be run, or
            too little room for the data.
        UserError: for options of a variant that do not exist or do not fit.
    """
    if config.dataset.name not in SHAPES:
        raise BenchError(
            f"bench.shape={config.dataset.name}: only the lengths of {', '.join(SHAPES)} are "
            "known. Choose the one that is most like it."
        )
    runs = {name: _options(config, name) for name in config.bench.compare}
    with tempfile.TemporaryDirectory(prefix="msea-bench-") as folder:
        material = _generate(config, Path(folder))
        if config.bench.together:
            variants = _measure(config, runs, material, Path(folder))
        else:
            variants = [
                variant
                for name, options in runs.items()
                for variant in _measure(config, {name: options}, material, Path(folder))
            ]
    _share_rates(variants)
    return Comparison(_title(config), _plain(config), environment(), variants)


def _options(config: BenchConfig, variant: str) -> TrainConfig:
    """The options of a variant."""
    shared = {item.name: getattr(config, item.name) for item in dataclasses.fields(RunConfig)}
    if variant in (ORIGINAL, OURS):
        if variant == ORIGINAL:
            _check_original(config)
        return TrainConfig(**shared)
    words = variant.split("+")
    if not all("=" in word for word in words):
        raise BenchError(
            f"bench.compare: {variant!r} is neither {ORIGINAL} nor {OURS}, nor options, such as in "
            "'bench.compare=[ours,\"backbone.dtype=bfloat16\"]', joined by '+'."
        )
    try:
        changed = OmegaConf.merge(
            OmegaConf.structured(TrainConfig(**shared)), OmegaConf.from_dotlist(words)
        )
    except OmegaConfBaseException as error:
        reason = str(error).strip().splitlines()[0]
        raise BenchError(
            f"bench.compare: {variant!r}: {reason}. A variant has options of "
            "python -m msea_lightning.train, such as backbone.dtype=bfloat16; choices of whole "
            "groups, such as adapter=mag, go on the command line and hold for all variants."
        ) from error
    for word in words:
        if (part := word.partition("=")[0].partition(".")[0]) not in shared:
            raise BenchError(
                f"bench.compare: {variant!r}: {part} changes nothing of what is measured. Variants "
                f"have options of {', '.join(sorted(shared))}."
            )
    options = to_typed(changed, TrainConfig)  # type: ignore[arg-type]
    if (options.dataset.name, options.dataset.path) != (config.dataset.name, config.dataset.path):
        raise BenchError(
            f"bench.compare: {variant!r}: all variants read the same generated data. Leave "
            "dataset.name and dataset.path out."
        )
    return options


def _check_original(config: BenchConfig) -> None:
    """Refuses to measure the original with what it does not have."""
    of_all = {
        f"adapter={config.adapter.name}": config.adapter.name != "mse",
        f"ablation={config.ablation.name}": not config.ablation.text,
    }
    own = {
        f"trainer.devices={config.trainer.devices}": config.trainer.devices > 1,
        f"backbone.quantization={config.backbone.quantization.value}": (
            config.backbone.quantization is not Quantization.none
        ),
    }
    found = [flaw for flaw, holds in (of_all | own).items() if holds]
    if not found:
        return
    remedy = "Leave original out"
    if not any(of_all.values()):
        remedy += (
            ", or give it to a variant instead of all: "
            f"'bench.compare=[original,\"{'+'.join(found)}\"]'"
        )
    raise BenchError(
        "bench.compare: the variant 'original' has the adapter mse with its text, one device and "
        f"no quantisation; here: {', '.join(found)}. {remedy}."
    )


def _generate(config: BenchConfig, folder: Path) -> Material:
    """Writes the data, as a store and, where a variant reads them, as they are published."""
    shape, dataset, bench = SHAPES[config.dataset.name], config.dataset, config.bench
    published = expected_counts(dataset)
    wanted = {"train": bench.utterances, "valid": bench.eval_utterances}
    wanted["test"] = bench.eval_utterances
    counts = {split: wanted[split] or published[split] or 0 for split in SPLITS}
    original = ORIGINAL in bench.compare
    _check_room(config, counts, folder, padded=original)
    tokenizer = backbone_tokenizer(
        config.backbone.path,
        tokenizer=config.backbone.tokenizer,
        weights=config.backbone.weights,
        special_tokens=config.backbone.special_tokens,
    )
    utterances = generate(shape, dataset, tokenizer, counts, seed=config.seed)
    write_store(folder / "store", utterances, info={"generated": dataset.name})
    place = None
    if original:
        target = folder / "published"
        target.mkdir()
        place = write_published(dataset, shape, tokenizer, counts, target, seed=config.seed)
    return Material(folder / "store", place)


def _check_room(
    config: BenchConfig, counts: Mapping[str, int], folder: Path, *, padded: bool
) -> None:
    shape, dataset = SHAPES[config.dataset.name], config.dataset
    dims = {"audio": dataset.audio_dim or 0, "vision": dataset.vision_dim or 0}
    each = sum(getattr(shape, name).mean * dim for name, dim in dims.items())
    if padded:
        each += sum(getattr(shape, name).quantiles[-1] * dim for name, dim in dims.items())
    needed, free = int(sum(counts.values()) * each * _FLOAT), shutil.disk_usage(folder).free
    if needed > free:
        raise BenchError(
            f"the generated data need {needed / 2**30:.1f} GiB in {folder.parent}, where "
            f"{free / 2**30:.1f} GiB are free: lower bench.utterances={config.bench.utterances} or "
            f"bench.eval_utterances={config.bench.eval_utterances}, or set TMPDIR to a place with "
            "more room."
        )


def _measure(
    config: BenchConfig, runs: Mapping[str, TrainConfig], material: Material, folder: Path
) -> list[Variant]:
    """Lets variants take turns; each turn is one round of one of them."""
    kinds, rounds = _TURNS[config.bench.measure], config.bench.rounds
    turns = ["start"]
    for kind in kinds:
        turns += [f"warm {kind}", *[kind] * rounds]
    variants = {name: Variant(name) for name in runs}
    with ExitStack() as stack:
        workers = {}
        for name, options in runs.items():
            own = [*turns, "peak", *(["stages", "rate"] if kinds and _alone(options) else [])]
            order = Order(
                variant=name,
                config=str(_written(options, folder)),
                store=str(material.store),
                published=None if material.published is None else str(material.published),
                turns=own,
                steps=config.bench.steps,
                started=time.time(),
            )
            worker = stack.enter_context(_worker(order, folder))
            workers[name] = worker
            # Alone, because loading several at a time would slow each of them.
            _take_start(variants[name], worker.ask("start"))
        for kind in kinds:
            for worker in workers.values():
                worker.ask(f"warm {kind}")
            for _ in range(rounds):
                for name, worker in workers.items():
                    found = Round(**worker.ask(kind))
                    variants[name].rounds.setdefault(kind, []).append(found)
        for name, worker in workers.items():
            variants[name].peak = worker.ask("peak")
            if kinds and _alone(runs[name]):
                stages = worker.ask("stages")
                variants[name].stages = {kind: stages[kind] for kind in kinds}
                variants[name].rate = worker.ask("rate")
    return list(variants.values())


def _share_rates(variants: Sequence[Variant]) -> None:
    """Gives variants the best rate that was measured in their dtype on their device.

    Each measures its own, at a moment when the device may have been busy with something else.
    """
    best: dict[tuple[str, str], float] = {}
    for variant in variants:
        if variant.rate is not None:
            key = variant.device, variant.dtype
            best[key] = max(variant.rate, best.get(key, 0.0))
    for variant in variants:
        if variant.rate is not None:
            variant.rate = best[variant.device, variant.dtype]


def _alone(options: TrainConfig) -> bool:
    """Whether one device does it all, so that what it does can be looked into."""
    return options.trainer.devices == 1


def _take_start(variant: Variant, found: Mapping[str, Any]) -> None:
    variant.device = found["device"]
    variant.start, variant.start_stages = found["seconds"], found["stages"]
    variant.start_resident, variant.weights = found["resident"], found["weights"]
    variant.dtype = found["dtype"]


def _written(options: TrainConfig, folder: Path) -> Path:
    file = folder / f"options-{len(list(folder.glob('options-*')))}.yaml"
    file.write_text(OmegaConf.to_yaml(OmegaConf.structured(options)), encoding="utf-8")
    return file


class _Worker:
    """A process that takes turns."""

    def __init__(self, order: Order, process: subprocess.Popen[str], said: Path) -> None:
        self._order, self._process, self._said = order, process, said

    def ask(self, turn: str) -> Any:
        """What the process answers.

        Raises:
            BenchError: if it failed.
        """
        told, answers = self._process.stdin, self._process.stdout
        assert told is not None
        assert answers is not None
        line = ""
        try:
            told.write(f"{turn}\n")
            told.flush()
            line = answers.readline()
        except BrokenPipeError:
            pass  # it ended; why, is told below
        if not line:
            self._process.wait()
            last = self._said.read_text("utf-8", errors="replace").strip().splitlines()[-8:]
            killed = self._process.returncode == -signal.SIGKILL
            raise BenchError(
                f"the variant {self._order.variant!r} ended in the middle of '{turn}' with exit "
                f"code {self._process.returncode}{_KILLED if killed else ''}. It said last: "
                f"{' / '.join(last) or 'nothing'}"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise BenchError(f"the variant {self._order.variant!r}: {answer['error']}")
        return answer["result"]


@contextmanager
def _worker(order: Order, folder: Path) -> Iterator[_Worker]:
    """Starts the process of a variant, and ends it."""
    number = len(list(folder.glob("order-*")))
    file, said = folder / f"order-{number}.json", folder / f"said-{number}.txt"
    file.write_text(json.dumps(asdict(order)), encoding="utf-8")
    original = order.variant == ORIGINAL
    with said.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "msea_lightning.benchmark.worker", str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # As its commands start: ours set it, and the original knows nothing of it.
            env={**os.environ, SETTING: "0" if original else os.environ.get(SETTING, "1")},
            # A group of its own, so that the processes of its other devices can be ended with it.
            start_new_session=True,
        )
        try:
            yield _Worker(order, process, said)
        finally:
            for pipe in (process.stdin, process.stdout):
                _close(pipe)
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(timeout=_PATIENCE)
            except subprocess.TimeoutExpired:
                # Several devices wait for each other in the middle of a step.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _close(pipe: IO[str] | None) -> None:
    if pipe is not None:
        try:
            pipe.close()
        except BrokenPipeError:
            return


def _title(config: BenchConfig) -> str:
    backbone, bench = config.backbone, config.bench
    size = [f"width {backbone.hidden_size}"] if backbone.hidden_size else []
    size += [f"{backbone.num_layers} layers"] if backbone.num_layers else []
    parts = [f"{config.dataset.name}: {config.adapter.name} on {backbone.name}", *size]
    parts.append(f"batch {config.training.batch_size}")
    parts.append(f"{bench.rounds} rounds of {bench.steps} batches")
    return ", ".join(parts)


def _plain(config: BenchConfig) -> dict[str, Any]:
    container = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def ratios(one: Sequence[Round], other: Sequence[Round]) -> list[float]:
    """Utterances per second of one variant for each of another, round by round.

    Args:
        one: Its rounds.
        other: The other's, taken in turn with them.
    """
    return [
        (mine.utterances / mine.seconds) / (theirs.utterances / theirs.seconds)
        for mine, theirs in zip(one, other, strict=True)
    ]
