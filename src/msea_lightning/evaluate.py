"""``python -m msea_lightning.evaluate run=<folder>``: evaluates a finished run's plugin again."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from msea_lightning.commands.command_line import launch
from msea_lightning.config.roots import EvaluateConfig

_log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> dict[str, float | None]:
    """Metrics of a run's plugin on a split.

    With the run's own rule they equal ``metrics.json``, with another batch size up to rounding.

    Writes ``evaluations/<split>-<rule>.json`` and ``.csv`` (predictions) into the run folder.

    Args:
        config: The run folder, the split, and how answers are picked.

    Returns:
        Name to value; None where undefined.

    Raises:
        UserError: if the folder is no finished run, or its data set or backbone is gone.
    """
    from functools import partial

    from msea_lightning.backbone import resolve_device
    from msea_lightning.data.module import build_datamodule
    from msea_lightning.language.prompt import encode_all
    from msea_lightning.plugin.folder import attach, load_plugin
    from msea_lightning.runs.files import write_atomically, write_json
    from msea_lightning.runs.folder import RunError, RunFolder
    from msea_lightning.training.fit import (
        evaluate_split,
        load_config_backbone,
        make_trainer,
        predictions_csv,
        show_results,
    )

    run = RunFolder(Path(config.run).expanduser())
    options = run.load_config()
    if not run.finished:
        raise RunError(
            f"{run.path} is not finished (it has no metrics.json, or a broken one): resume it with "
            f"`python -m msea_lightning.train ... ckpt={run.path}`."
        )
    if config.dataset_path is not None:
        options.dataset.path = config.dataset_path
    data = build_datamodule(options.dataset, options.training, options.seed)
    data.prepare_data()
    data.setup()
    # The company that an utterance is read in moves its numbers by rounding.
    recorded = run.eval_batch_size or data.eval_batch_size
    data.eval_batch_size = config.eval_batch_size or recorded
    if data.eval_batch_size != recorded:
        _log.info(
            "eval_batch_size %d instead of the run's %d: numbers may differ by rounding",
            data.eval_batch_size,
            recorded,
        )
    device = resolve_device(config.accelerator)
    task = attach(load_plugin(run.plugin), load_config_backbone(options.backbone, device))
    task.rule = config.decode or options.decode
    data.tokenize(partial(encode_all, task.prompt.tokenizer))
    trainer = make_trainer(
        device,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=sys.stderr.isatty(),
    )
    results = evaluate_split(trainer, task, data, config.split)
    folder = run.path / "evaluations"
    folder.mkdir(exist_ok=True)
    name = f"{config.split.value}-{task.rule.value}"
    write_atomically(folder / f"{name}.csv", predictions_csv(task.predictions))
    write_json(folder / f"{name}.json", results)
    show_results(
        {config.split.value: results},
        dataset=options.dataset.name,
        backbone=options.backbone.name,
        adapter=options.adapter.name,
        ablation=options.ablation.name,
    )
    defined: dict[str, float | None] = json.loads((folder / f"{name}.json").read_text("utf-8"))
    return defined


def run(config: EvaluateConfig) -> None:
    """Evaluates as the options say.

    Args:
        config: All options.
    """
    evaluate(config)


def main() -> None:
    """The command line."""
    launch(run, config_name="evaluate", root=EvaluateConfig)


if __name__ == "__main__":
    main()
