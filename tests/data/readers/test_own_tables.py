"""Own tables as people really have them: nothing is left aside in silence."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import math
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msea_lightning.config.roots import TrainConfig
from msea_lightning.data.options import DatasetConfig, EmptyText, LabelConfig, LabelKind, Reader
from msea_lightning.data.prepare import prepare_store
from msea_lightning.data.readers import ReadError, find_files, read_files
from msea_lightning.data.utterance import Utterance
from msea_lightning.training.fit import fit
from tests.data.published import TableRow, table_rows, write_table

TABLE = DatasetConfig(name="table", reader=Reader.table)
HEADER = "id,split,text,label"


def read(folder: Path, **changes: Any) -> list[Utterance]:
    """All utterances of all splits."""
    reading = read_files(folder, dataclasses.replace(TABLE, **changes))
    return [utterance for part in reading.values() for utterance in part]


def written(folder: Path, *rows: str, header: str = HEADER) -> Path:
    """A table without features, of rows as they are in the file."""
    (folder / "utterances.csv").write_text("\n".join((header, *rows)), encoding="utf-8")
    return folder


# --- Where the features are -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("video", "vision"),
        ("visual", "vision"),
        ("Vision", "vision"),
        ("VIDEO", "vision"),
        ("Audio", "audio"),
        ("acoustic", "audio"),
        ("text_features", "text_features"),
        ("HuBERT", "HuBERT"),
    ],
)
@pytest.mark.parametrize("form", ["files", "keys", "padded"])
def test_features_are_found_by_every_name(
    tmp_path: Path, called: str, name: str, form: str
) -> None:
    folder = write_table(tmp_path, table_rows(), form=form, modalities=("audio",))
    if form == "files":
        (folder / "audio").rename(folder / called)
    else:
        arrays = dict(np.load(folder / "features.npz"))
        named = {key.replace("audio", called, 1): values for key, values in arrays.items()}
        np.savez(folder / "features.npz", **named)
    assert all(set(utterance.features) == {name} for utterance in read(folder))
    assert len(find_files(folder, TABLE)) == (13 if form == "files" else 2)


def test_two_places_for_one_feature_are_refused(tmp_path: Path) -> None:
    folder = write_table(tmp_path, table_rows(), form="files")
    (folder / "audio").rename(folder / "video")
    with pytest.raises(ReadError, match=r"vision features are in more than one place: .*; .*Keep"):
        read(folder)


def test_a_folder_of_videos_is_said_to_hold_no_features(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_table(tmp_path, table_rows(), form="files", modalities=("audio",))
    (folder / "video").mkdir()
    (folder / "video" / "clip.0.mp4").write_bytes(b"")
    with caplog.at_level(logging.INFO):
        read(folder)
    assert "video holds no .npy files: no features are read from it" in caplog.text


def test_hidden_files_are_ignored_and_further_clips_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_table(tmp_path, table_rows(), form="files")
    plain = read(folder)
    (folder / "audio" / ".ipynb_checkpoints").mkdir()
    (folder / "__MACOSX").mkdir()
    for place in ("audio/._clip.0", "audio/.ipynb_checkpoints/clip.0", "__MACOSX/x", ".cache"):
        (folder / f"{place}.npy").write_bytes(b"\0")
    np.save(folder / "audio" / "outside.npy", np.ones((2, 5)))
    np.save(folder / "audio" / "protocol.npy", np.ones((2, 5)))
    with caplog.at_level(logging.WARNING):
        found = read(folder)
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder / 'audio'} holds audio features of 2 utterances that no row of utterances.csv "
        "has: outside, protocol. They are left out"
    ]
    for one, other in zip(plain, found, strict=True):
        np.testing.assert_array_equal(one.features["audio"], other.features["audio"])


def test_folders_of_something_else_are_named_and_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_table(tmp_path, table_rows(), form="files")
    (folder / "other-project" / "data").mkdir(parents=True)
    np.save(folder / "other-project" / "data" / "x.npy", np.ones(3))
    with caplog.at_level(logging.WARNING):
        assert all(set(utterance.features) == {"audio", "vision"} for utterance in read(folder))
    assert "other-project holds no .npy file that is called after an id: not read" in caplog.text
    np.save(folder / "other-project" / "clip.1.npy", np.ones((3, 3)))
    with pytest.raises(ReadError, match="'other-project' cannot be the name of a feature"):
        read(folder)


def a_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("make", [a_link, Path.mkdir])
@pytest.mark.parametrize("name", ["audio/clip.0.npy", "features.npz", "utterances.csv"])
def test_what_is_no_file_is_named(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    folder = write_table(tmp_path, table_rows(), form="files")
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with pytest.raises(ReadError, match=rf"{name}: a folder, or a link to what is not there"):
        read(folder)


@pytest.mark.parametrize("form", ["files", "keys"])
def test_features_that_are_of_no_row_at_all_are_refused(tmp_path: Path, form: str) -> None:
    rows = table_rows()
    write_table(tmp_path, [dataclasses.replace(row, id=f"{row.id}.wav") for row in rows], form=form)
    with (tmp_path / "utterances.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [HEADER.split(","), *((row.id, row.split, row.text, row.label) for row in rows)]
        )
    with pytest.raises(ReadError, match=r"12 utterances, none of which .* such as 'clip\.0'"):
        read(tmp_path)


@pytest.mark.parametrize(("table", "files"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "NFC")])
@pytest.mark.parametrize("form", ["files", "keys"])
def test_accents_are_the_same_however_they_are_written(
    tmp_path: Path, table: Any, files: Any, form: str
) -> None:
    rows = [dataclasses.replace(row, id=f"café.{n}") for n, row in enumerate(table_rows())]

    def in_form(kind: Any) -> list[TableRow]:
        return [dataclasses.replace(row, id=unicodedata.normalize(kind, row.id)) for row in rows]

    write_table(tmp_path, in_form(files), form=form)
    write_table(tmp_path, in_form(table), form=form, modalities=())
    assert all(set(utterance.features) == {"audio", "vision"} for utterance in read(tmp_path))


# --- Labels -----------------------------------------------------------------------------------

CLASSES = LabelConfig(kind=LabelKind.emotions, names=["0", "1", "2"])


@pytest.mark.parametrize("labels", [("0", "1", "2"), ("0.0", "1.0", "2.0"), ("0", "1.0", "2e0")])
def test_class_numbers_are_names_however_they_are_written(
    tmp_path: Path, labels: tuple[str, ...]
) -> None:
    folder = write_table(tmp_path, table_rows(labels=labels), modalities=())
    assert [u.label for u in read(folder, labels=CLASSES)][:3] == ["0", "1", "2"]


@pytest.mark.parametrize("label", ["1_0", "１", "0x1", "1,5", "٣"])
def test_only_plain_decimal_notation_is_a_number(tmp_path: Path, label: str) -> None:
    folder = write_table(tmp_path, table_rows(labels=("1", label)), modalities=())
    assert [utterance.label for utterance in read(folder)][:2] == ["1", label]
    scale = LabelConfig(kind=LabelKind.scale, low=0, high=20)
    with pytest.raises(ReadError, match="which is not a number, but"):
        read(folder, labels=scale)


@pytest.mark.parametrize("missing", ["", " ", "nan", "NaN", "NA", "n/a", "#N/A", "<NA>", "NULL"])
@pytest.mark.parametrize("labels", [("happy", "sad"), ("1", "2")])
def test_a_missing_label_is_no_emotion(
    tmp_path: Path, missing: str, labels: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_table(tmp_path, table_rows(labels=(*labels, missing)), modalities=())
    with caplog.at_level(logging.WARNING):
        found = read(folder)
    expected = [label if labels[0] == "happy" else float(label) for label in labels]
    assert [utterance.label for utterance in found][:3] == [*expected, None]
    assert f"4 of 12 utterances have no label (line 4 '{missing.strip()}', line 7" in caplog.text


def test_a_name_like_a_missing_label_can_be_listed(tmp_path: Path) -> None:
    folder = write_table(tmp_path, table_rows(labels=("happy", "NA")), modalities=())
    labels = LabelConfig(kind=LabelKind.emotions, names=["happy", "NA"])
    assert [utterance.label for utterance in read(folder, labels=labels)][:2] == ["happy", "NA"]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_decimal_commas_are_read_where_commas_do_not_separate(
    tmp_path: Path, separator: str
) -> None:
    table = ["id,split,text,label", "a,train,x,1|5", "b,test,y,-0|25", "c,test,z,2"]
    lines = [line.replace(",", separator).replace("|", ",") for line in table]
    written(tmp_path, *lines[1:], header=lines[0])
    scale = LabelConfig(kind=LabelKind.scale, low=-3, high=3)
    for labels in (LabelConfig(), scale):
        assert [utterance.label for utterance in read(tmp_path, labels=labels)] == [1.5, -0.25, 2]


@pytest.mark.parametrize(
    ("main", "further"), [(("joy", "sad"), (0.5, -1.0)), ((1.0, 2.0), ("joy", "sad"))]
)
def test_each_label_is_a_number_or_a_name_by_itself(
    tmp_path: Path, main: tuple[Any, Any], further: tuple[Any, Any]
) -> None:
    rows = [f"u{i},train,x,{main[i]},{further[i]}" for i in range(2)]
    written(tmp_path, *rows, header=f"{HEADER},label_T")
    assert [utterance.labels for utterance in read(tmp_path)] == [
        {"M": main[i], "T": further[i]} for i in range(2)
    ]


def test_further_labels_are_read_by_name(tmp_path: Path) -> None:
    header = "id,split,text,label,label_T,label_A,label_V"
    written(tmp_path, "a,train,x,1,0.5,-1,", "b,test,y,0,,nan,1", header=header)
    assert [utterance.labels for utterance in read(tmp_path)] == [
        {"M": 1.0, "T": 0.5, "A": -1.0},
        {"M": 0.0, "V": 1.0},
    ]


# --- The table --------------------------------------------------------------------------------


def test_empty_texts_are_refused_kept_or_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path, "a,train,x,joy", 'b,train," ",sad', "c,train,,sad", "d,test,y,joy")
    with pytest.raises(
        ReadError, match=r"'b' \(train, line 3\) has an empty text.*empty_text=keep"
    ):
        read(tmp_path)
    with caplog.at_level(logging.WARNING):
        kept = read(tmp_path, empty_text=EmptyText.keep)
        dropped = read(tmp_path, empty_text=EmptyText.drop)
    assert [(u.id, u.text) for u in kept] == [("a", "x"), ("b", ""), ("c", ""), ("d", "y")]
    assert [u.id for u in dropped] == ["a", "d"]
    assert [record.getMessage() for record in caplog.records] == [
        "2 utterances of train have no words: kept",
        "2 utterances of train have no words: dropped",
    ]


def test_ids_that_repeat_are_counted(tmp_path: Path) -> None:
    rows = [f"dia0_utt{n},{split},x,joy" for split in ("train", "dev", "test") for n in range(5)]
    with pytest.raises(ReadError) as error:
        read(written(tmp_path, *rows))
    assert (
        "5 ids occur more than once: 'dia0_utt0' (train, line 2; valid, line 7; test, line 12), "
    ) in str(error.value)
    assert "and 2 more. " in str(error.value)
    assert "train_dia0_utt0" in str(error.value)


def test_meld_as_it_numbers_itself(shared: Path, tmp_path: Path) -> None:
    rows = []
    for split in ("train", "dev", "test"):
        with (shared / "data" / "meld_text" / f"{split}.csv").open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                name = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
                rows.append((name, split, row["Utterance"], row["Emotion"], row["Speaker"]))
    for prefix in (False, True):
        with (tmp_path / "utterances.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("id", "split", "text", "label", "speaker"))
            writer.writerows(
                (f"{split}_{name}" if prefix else name, split, *rest) for name, split, *rest in rows
            )
        if not prefix:
            with pytest.raises(ReadError, match="2067 ids occur more than once: 'dia0_utt0'"):
                read(tmp_path)
    found = read(tmp_path)
    assert len(found) == 13708
    assert (found[0].group, found[-1].group) == ("train_dia0", "test_dia279")


@pytest.mark.parametrize("error", ["#NAME?", "#REF!", "#VALUE!", "#DIV/0!", "#NUM!", "#SPILL!"])
@pytest.mark.parametrize("column", range(4))
def test_errors_of_a_spreadsheet_are_refused(tmp_path: Path, error: str, column: int) -> None:
    fields = ["a", "train", "x", "joy"]
    fields[column] = error
    name = HEADER.split(",")[column]
    with pytest.raises(ReadError, match=rf"line 2 has '{error[:-1]}.' as {name}: a spreadsheet"):
        read(written(tmp_path, ",".join(fields)))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_of_spreadsheets(tmp_path: Path, separator: str) -> None:
    header = HEADER.replace(",", separator)
    row = separator.join(("a", "train", f'"well{separator} no"', "joy"))
    found = read(written(tmp_path, row, header=header))
    assert [(u.id, u.text, u.label) for u in found] == [("a", f"well{separator} no", "joy")]
    with pytest.raises(ReadError, match="has 5 fields, the header has 4"):
        read(written(tmp_path, f"{row}{separator}", header=header))


def test_hash_tags_are_words(tmp_path: Path) -> None:
    (utterance,) = read(written(tmp_path, "a,train,#WOW!,joy"))
    assert utterance.text == "#WOW!"


def test_names_of_columns_may_hold_other_separators(tmp_path: Path) -> None:
    header = "id\tsplit\ttext\tlabel\tnotes (a, b, c, d, e)"
    (utterance,) = read(written(tmp_path, "a\ttrain\twell, no\tjoy\t", header=header))
    assert utterance.text == "well, no"


def test_a_feature_is_not_called_as_its_own_index(tmp_path: Path) -> None:
    written(tmp_path, "a,train,x,joy")
    np.savez(tmp_path / "features.npz", audio=np.ones((1, 3)), audio_offsets=np.ones((1, 2)))
    with pytest.raises(ReadError, match="'audio_offsets' cannot be the name of a feature"):
        read(tmp_path)


def test_texts_of_any_length_are_read(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    (utterance,) = read(written(tmp_path, f"a,train,{'x' * 200_000},joy"))
    assert len(utterance.text) == 200_000
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("identity", "group"),
    [
        ("dia12_utt3", "dia12"),
        ("train_dia12_utt3", "train_dia12"),
        ("Ses01F_impro01_M003", "Ses01F_impro01"),
        ("Ses05M_script01_1b_F012", "Ses05M_script01_1b"),
        ("train/clip_7", None),  # a folder, and no dialogue
        ("clip_7", None),
    ],
)
def test_the_dialogue_is_taken_from_the_id(
    tmp_path: Path, identity: str, group: str | None
) -> None:
    written(
        tmp_path,
        f"{identity},train,x,joy,",
        f"b{identity},train,x,joy,mine",
        header=f"{HEADER},group",
    )
    assert [utterance.group for utterance in read(tmp_path)] == [group, "mine"]


def test_utterances_without_words_and_vision_are_trained_on(
    options: Callable[..., TrainConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [dataclasses.replace(row, text="") for row in table_rows()[::2]] + table_rows()[1::2]
    folder = write_table(tmp_path / "mine", rows, modalities=("audio",))
    overrides = ("dataset=table", f"dataset.path={folder}", "dataset.empty_text=keep")
    with caplog.at_level(logging.INFO):
        run = fit(options(*overrides, "training.schedule_epochs=1", "training.batch_size=1"))
    said = [text for text in caplog.messages if "no branch is trained for it" in text]
    assert said == ["the data set has no vision: no branch is trained for it"]
    assert json.loads(run.metrics.read_text(encoding="utf-8"))["warnings"] == []  # it is no fault
    lines = (run.path / "predictions.csv").read_text(encoding="utf-8").splitlines()
    predictions = list(csv.DictReader(lines))
    assert [row["text"] for row in predictions].count("") == 2
    assert all(math.isfinite(float(row["probability"])) for row in predictions)


@pytest.mark.parametrize("column", range(2))
def test_a_failed_lookup_is_no_id_and_no_split(tmp_path: Path, column: int) -> None:
    fields = ["a", "train", "x", "joy"]
    fields[column] = "#N/A"
    (tmp_path / "utterances.csv").write_text(f"id,split,text,label\n{','.join(fields)}\n")
    with pytest.raises(ReadError, match=r"line 2 has '#N/A' as (id|split): a spreadsheet"):
        read(tmp_path)


def test_line_ends_of_old_macs_with_semicolons(tmp_path: Path) -> None:
    (tmp_path / "utterances.csv").write_bytes(b"id;split;text;label\ra;train;x;joy\r")
    assert [row.id for row in read(tmp_path)] == ["a"]


# --- What made the features ---------------------------------------------------------------------


def facts(**features: dict[str, Any]) -> str:
    return json.dumps({"format": 1, "features": features})


def test_what_made_the_features_stays_with_them(tmp_path: Path) -> None:
    folder = write_table(tmp_path / "data", table_rows(), form="files", modalities=("audio",))
    width = read(folder)[0].features["audio"].shape[1]
    unknown = prepare_store(dataclasses.replace(TABLE, path=str(folder), cache=str(tmp_path)))
    assert unknown.extractors == {}
    made = {"name": "log_mel", "version": 1, "settings": {"mels": width}, "dim": width}
    (folder / "features.json").write_text(facts(audio=made))
    assert folder / "features.json" in find_files(folder, TABLE)
    store = prepare_store(dataclasses.replace(TABLE, path=str(folder), cache=str(tmp_path)))
    assert store.folder != unknown.folder
    assert store.extractors == {"audio": made}


@pytest.mark.parametrize("content", ["{", "[]", "{}", facts(audio={"name": "x", "dim": "wide"})])
def test_a_damaged_file_of_extractors_is_refused(content: str, tmp_path: Path) -> None:
    folder = write_table(tmp_path, table_rows(), form="files")
    (folder / "features.json").write_text(content)
    with pytest.raises(ReadError, match=r"features\.json does not say which extractors"):
        read_files(folder, TABLE)


def test_features_that_an_extractor_cannot_have_made_are_refused(tmp_path: Path) -> None:
    folder = write_table(tmp_path, table_rows(), form="files", modalities=("audio",))
    (folder / "features.json").write_text(facts(audio={"name": "log_mel", "dim": 99}))
    with pytest.raises(ReadError, match=r"audio features per frame, but .* of log_mel with 99"):
        read(folder)
