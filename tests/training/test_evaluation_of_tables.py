"""``python -m msea_lightning.evaluate run=... dataset_path=...`` on tables of other utterances."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from msea_lightning.config.errors import ConfigError
from msea_lightning.config.roots import EvaluateConfig
from msea_lightning.data.options import ColumnsConfig, Split
from msea_lightning.data.readers import ReadError
from msea_lightning.data.utterance import DataError
from msea_lightning.runs.folder import RunFolder
from msea_lightning.training.build import build_data
from msea_lightning.training.evaluation import evaluate


@pytest.fixture
def run(finished_run: RunFolder, tmp_path: Path) -> RunFolder:
    """A finished run on the demo corpus, which has no files, that may be changed."""
    shutil.copytree(finished_run.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


@pytest.fixture
def table(run: RunFolder, tmp_path: Path) -> Path:
    """The test utterances of the run, and no others, under columns of other names."""
    folder = tmp_path / "mine"
    part = build_data(run.load_config()).splits["test"]
    arrays = {}
    with (tmp_path / "clips.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Clip", "Words", "Mood"])
        for number in range(len(part)):
            one = part[number]
            writer.writerow([one.id, one.text, one.label])
            arrays |= {f"{name}/{one.id}": frames for name, frames in one.features.items()}
    folder.mkdir()
    (tmp_path / "clips.csv").rename(folder / "clips.csv")
    np.savez(folder / "features.npz", **arrays)
    return folder / "clips.csv"


COLUMNS = ColumnsConfig(id="Clip", text="Words", label="Mood")


def test_a_table_with_test_rows_alone_gives_what_the_run_said(run: RunFolder, table: Path) -> None:
    found = evaluate(EvaluateConfig(str(run.path), dataset_path=str(table), columns=COLUMNS))
    assert found == json.loads(run.metrics.read_text())["test"]
    written = run.path / "evaluations" / "clips-test-greedy.csv"
    assert written.read_bytes() == run.predictions.read_bytes()


def test_what_cannot_be_evaluated_is_refused(run: RunFolder, tmp_path: Path) -> None:
    def config(path: Path, **options: object) -> EvaluateConfig:
        return EvaluateConfig(str(run.path), dataset_path=str(path), **options)  # type: ignore[arg-type]

    path = tmp_path / "some.csv"
    path.write_text("id,split,text,label\n1,test,hello,\n")
    with pytest.raises(DataError, match=r"all 1 test utterances of 'some' are unlabelled, .*predi"):
        evaluate(config(path))
    with pytest.raises(DataError, match="'some' has no train split to evaluate; it has test"):
        evaluate(config(path, split=Split.train))
    with pytest.raises(ReadError, match=r"columns\.text=Words: .*no column Words"):
        evaluate(config(path, columns=ColumnsConfig(text="Words")))
    path.write_text("id,text,label\n1,hello,nostalgia\n")
    with pytest.raises(ReadError, match="has the unknown label 'nostalgia'"):
        evaluate(config(path))
    np.savez(tmp_path / "features.npz", audio=np.ones((1, 3)))
    path.write_text("id,text,label\n1,hello,joy\n")
    with pytest.raises(DataError, match=r"has 3 audio features per frame, but the run learned fro"):
        evaluate(config(path))
    with pytest.raises(ConfigError, match="is no table, and the demo corpus has no files"):
        evaluate(config(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"columns\.id has no effect without dataset_path"):
        evaluate(EvaluateConfig(str(run.path), columns=COLUMNS))
