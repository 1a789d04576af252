"""Lines of JSON: each is an utterance, or has a reason why it is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from msea_lightning.config.errors import ConfigError, UserError
from msea_lightning.data.files.errors import ReadError
from msea_lightning.data.options import ColumnsConfig
from msea_lightning.inference.inputs import LinesInput, open_inputs
from msea_lightning.inference.lines import Line, read_lines
from msea_lightning.inference.outputs import rendered


def read(folder: Path, *lines: str) -> list[Line]:
    (folder / "in.jsonl").write_text("\n".join(lines))
    return read_lines(folder / "in.jsonl")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": "c", "clip": 5}', "line 2 has 5 as its clip"),
        ('{"id": "c", "clip": ["x"]}', "line 2 has <list> as its clip"),
        ('{"id": "c", "audio": [[%s]]}' % ("9" * 401), "audio is no array of numbers"),
        ('{"id": "c", "audio": [[%s]]}' % ("9" * 5001), "line 2 is no JSON"),
        ('{"id": "c", "text": "a\\ud800b"}', r"a text that is not valid Unicode \(.*character 2"),
        ("[" * 100_000, "line 2 is no JSON"),
        ("[5]", "line 2 is list"),
        ('{"id": "c", "words": "a"}', "line 2 has words; known are"),
        ('{"id": [1], "text": "a"}', "line 2 has <list> as its id"),
        ('{"id": true, "text": "a"}', "line 2 has True as its id"),
        ('{"id": "c", "text": ["a"]}', "line 2 has <list> as its text: give a text, or"),
        ('{"id": "c", "text": 5}', "line 2 has 5 as its text"),
        ('{"id": "c", "text": "a", "label": {}}', "line 2 has <dict> as its label"),
        ('{"id": "c", "features": [1]}', "features is no object"),
        ('{"id": "c", "features": {"": [1]}}', "features without a name"),
        ('{"id": "c", "audio": [1], "features": {"audio": [1]}}', "audio is given twice"),
        ('{"id": "c", "audio": [["1"]]}', "a value of type str"),
        ('{"id": "c", "audio": [[1, true]]}', "a value of type bool"),
        ('{"id": "c", "audio": [null]}', "a value of type NoneType"),
        ('{"id": "c", "audio": [[1], [1, 2]]}', "audio is no array of numbers"),
        ('{"id": "c", "audio": {"a": 1}}', "audio is no array of numbers"),
        ('{"id": "c", "audio": "gone.npy"}', "there is no file .*gone.npy"),
        ('{"id": "c", "audio": "a\\u0000"}', "there is no file"),
        ('{"id": "c", "text": "a", "start": 1}', "a start or an end, but no clip"),
        ('{"id": "c", "clip": "in.jsonl", "start": true}', "at seconds, not at True"),
        ('{"id": "c", "clip": "in.jsonl", "start": %s}' % ("9" * 401), "at seconds"),
        ('{"id": "c", "clip": "in.jsonl", "end": 1e300}', "at seconds"),
        ('{"id": "c", "clip": "~nobody/x.wav"}', "There is no file .*~nobody"),
    ],
)
def test_a_line_with_a_flaw_stops_no_other(tmp_path: Path, line: str, reason: str) -> None:
    before, flawed, after = read(tmp_path, '{"text": "a"}', line, '{"text": "b"}')
    assert [before.utterance().text, after.utterance().text] == ["a", "b"]
    assert flawed.id in ("c", "line 2")
    with pytest.raises(UserError, match=reason):
        flawed.utterance()


def test_null_is_what_is_absent(tmp_path: Path) -> None:
    keys = ("id", "text", "label", "audio", "vision", "features", "clip", "start", "end")
    (line,) = read(tmp_path, json.dumps(dict.fromkeys(keys)))
    assert line == Line(f"{tmp_path}/in.jsonl, line 1", "line 1")
    (line,) = read(tmp_path, '{"id": 7, "label": -0.5, "features": {"audio": null}}')
    assert (line.id, line.label, line.utterance().features) == ("7", "-0.5", {})


def test_features_are_lists_and_files(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.ones((2, 3)))
    (line,) = read(tmp_path, '{"audio": [[1, 2.5]], "features": {"vision": "v.npy"}}')
    features = line.utterance().features
    assert features["audio"].tolist() == [[1, 2.5]]
    assert features["vision"].shape == (2, 3)
    assert line.files == [tmp_path / "v.npy"]


def test_ids_are_unique(tmp_path: Path) -> None:
    read(tmp_path, '{"id": 1, "text": "a"}', '{"id": "1", "text": "b"}')
    with pytest.raises(ReadError, match=r"in\.jsonl: several utterances are called '1'"):
        LinesInput(tmp_path / "in.jsonl")


def test_an_empty_id_of_a_table_stays(tmp_path: Path) -> None:
    (tmp_path / "utterances.csv").write_text("id,text\n,a\n")
    with open_inputs(str(tmp_path), None) as inputs:
        said = rendered(inputs.rows, [{"error": "no"}], as_csv=False)
    assert json.loads(said) == {"id": "", "text": "a", "error": "no"}


def test_label_files_of_others_are_read_without_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "test_sent_emo.csv").write_text("Utterance,Dialogue_ID,Utterance_ID\nHi,0,3\n")
    with caplog.at_level("INFO"), open_inputs(str(tmp_path), None) as inputs:
        assert [(row.id, row.text, row.split) for row in inputs.rows] == [
            ("test/dia0_utt3", "Hi", "test")
        ]
    assert "read as a label file of MELD" in caplog.text


def test_columns_of_a_table_are_named(tmp_path: Path) -> None:
    table = tmp_path / "said.csv"
    table.write_text("Clip,Words\nu1,Hi\n")
    columns = ColumnsConfig(id="Clip", text="Words")
    with open_inputs(str(table), None, columns) as inputs:
        assert [(row.id, row.text) for row in inputs.rows] == [("u1", "Hi")]
    with pytest.raises(ReadError, match=r"has no column id .*found Clip, Words.*columns\.id=NAME"):
        open_inputs(str(table), None)
    (tmp_path / "said.jsonl").write_text('{"text": "Hi"}\n')
    with pytest.raises(ConfigError, match=r"columns\.id has no effect on input=.*said\.jsonl"):
        open_inputs(str(tmp_path / "said.jsonl"), None, columns)


def test_labels_beside_clips_make_no_table(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("id,text,label\na,Hi,joy\n")
    (tmp_path / "a.mp4").write_bytes(b"")
    with open_inputs(str(tmp_path), None) as inputs:
        assert inputs.has_clips
