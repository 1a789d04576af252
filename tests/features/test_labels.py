from __future__ import annotations

from pathlib import Path

import pytest

from msea_lightning.data.files.errors import ReadError
from msea_lightning.features.clips import Clip, Part
from msea_lightning.features.contract import FeatureError
from msea_lightning.features.labels import KEPT, Labels, read_labels

CLIPS = [
    Clip(Path(file), file, file.rpartition(".")[0]) for file in ("a/one.wav", "b/two.mp4", "c.mp4")
]


def read(folder: Path, content: str) -> Labels:
    (folder / "labels.csv").write_text(content, encoding="utf-8")
    return read_labels(folder / "labels.csv", CLIPS)


def columns(**values: str) -> dict[str, str]:
    return dict.fromkeys(KEPT, "") | values


@pytest.mark.parametrize("name", ["a/one.wav", "a/one", "one.wav", "one", "a\\one.wav", "./a/one"])
@pytest.mark.parametrize("column", ["file", "id"])
def test_a_row_names_its_clip(name: str, column: str, tmp_path: Path) -> None:
    found = read(tmp_path, f"{column},label\n{name},happy\n")
    assert found == Labels({"a/one": [Part("a/one", columns=columns(label="happy"))]}, split=False)


def test_rows_are_parts_of_clips(tmp_path: Path) -> None:
    content = "file;start;end;text;label;split;speaker\n"
    content += "c.mp4;0;2,5; Hello ;1,5;train;Ann\nc.mp4;2,5;;;-1;test;\n"
    found = read(tmp_path, content)
    first = columns(label="1.5", split="train", speaker="Ann", group="c")
    second = columns(label="-1", split="test", group="c")
    parts = [Part("c#1", 0.0, 2.5, "Hello", first), Part("c#2", 2.5, None, None, second)]
    assert found == Labels({"c": parts}, split=True)
    cues = read(tmp_path, "id,label\nc#7,sad\nc#9,happy\n").rows["c"]
    assert [part.id for part in cues] == ["c#7", "c#9"]
    own = read(tmp_path, "id,file,label\nfirst,c,sad\n").rows["c"]
    assert [part.id for part in own] == ["first"]


def test_rows_and_clips_without_a_counterpart_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read(tmp_path, "file,label\nc.mp4,happy\nd.mp4,sad\n")
    assert "1 rows of" in caplog.text
    assert "do not name one clip: d.mp4" in caplog.text
    assert "2 clips have no row" in caplog.text
    assert "are left out: a/one.wav, b/two.mp4" in caplog.text


def test_a_name_in_two_folders_is_no_clip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clips = [Clip(Path(f), f, f.removesuffix(".wav")) for f in ("a/u1.wav", "b/u1.wav", " c.wav")]
    (tmp_path / "labels.csv").write_text("file,label\nu1,happy\na/u1,sad\nc.wav,sad\n")
    assert read_labels(tmp_path / "labels.csv", clips).rows.keys() == {"a/u1", " c"}
    assert "u1 (which may be a/u1.wav or b/u1.wav: write the folder too)" in caplog.text


def test_labels_are_written_as_a_table_reads_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A column of numbers has points; words that mean that there is no label are none."""

    def labels(content: str) -> list[str]:
        found = read(tmp_path, content).rows
        return [found[clip][0].columns["label"] for clip in ("a/one", "b/two", "c")]

    assert labels("file;label\none;1,5\ntwo;nan\nc;-2\n") == ["1.5", "", "-2"]
    assert "1 rows of" in caplog.text
    assert "have no label: line 3 'nan'" in caplog.text
    assert labels("file;label\none;1,5\ntwo;sad\nc;N/A\n") == ["1,5", "sad", ""]
    assert labels('file,label\none,"1,5"\ntwo,2\nc,null\n') == ["1,5", "2", ""]


def test_columns_that_are_not_read_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read(tmp_path, "file,Emotion,text\nc.mp4,happy,Hello\n")
    assert "labels.csv that are not read: Emotion. Those that are: id, file" in caplog.text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("id,label\nd,x\n", r"none of the 1 rows .* names one clip: d\. Clips are called a/one"),
        ("file,label\n,happy\n", "line 2: there is neither an id nor a file"),
        ("label\nhappy\n", "has no column file and no column id, only label. Name the clip of"),
        ("Filename,label\nc,x\n", r"only Filename, label\. Call 'Filename' file\."),
        ("id,start\nc,soon\n", "line 2: start is 'soon', expected seconds"),
        ("id,start\nc,-1\n", "line 2: start is '-1', expected seconds"),
        ("id,start,end\nc,2,1\n", "line 2: it begins at 2 s and ends at 1 s"),
        ("id,label\nc,x\nc,y\n", "line 2: there are several rows of the clip c"),
        ("id,file\nx,c\nx,one\n", "the id 'x' occurs more than once"),
        ("id,file\n../x,c\n", r"the id '\.\./x' cannot be the name of a file"),
        ("id,split\nc,train\none,\n", "line 3: the split is ''; splits are train"),
        ("id,split\nc,training\n", "line 2: the split is 'training'"),
    ],
)
def test_tables_that_cannot_be_meant_are_refused(content: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=reason):
        read(tmp_path, content)


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"nope\.csv: there is no such file\. Give a CSV file"):
        read_labels(tmp_path / "nope.csv", CLIPS)
    with pytest.raises(ReadError, match=r"is a folder\. Give a CSV file"):
        read_labels(tmp_path, CLIPS)
