"""Goes from WAV files and a CSV of labels to answers about new files, by README's three commands.

    python scripts/speech_check.py build/speech-check

makes a small corpus with espeak-ng, which has to be installed: eight voices say fifteen sentences
in four manners, told apart by pitch, speed and loudness alone. It shows that the way from files to
answers works, not how well emotions of people are recognised.
"""

from __future__ import annotations

import csv
import random
import subprocess
import sys
from pathlib import Path

VOICES = ("en-us", "en-gb", "en-gb-scotland", "en+f3", "en+m2", "en+f1", "en+m4", "en-us+f4")
MANNERS = {
    "angry": ((60, 80), (200, 240), (170, 200)),
    "happy": ((80, 99), (170, 200), (110, 150)),
    "neutral": ((45, 55), (145, 165), (90, 110)),
    "sad": ((20, 35), (90, 120), (40, 70)),
}
"""Ranges of pitch (0 to 99), words a minute, and loudness (0 to 200), as espeak-ng has them."""

SENTENCES = (
    "The kettle is on the stove",
    "Please put it over there",
    "He left the office at nine",
    "I will see you tomorrow",
    "The train is late again",
    "We have to talk about this",
    "It is eleven o'clock",
    "She bought a new car",
    "The letter came this morning",
    "They are waiting outside",
    "Nobody told me about it",
    "Dogs are sitting by the door",
    "Kids are talking by the door",
    "That is what happened",
    "In seven hours it will be",
)
LABELLED, NEW = 8, 1
"""Sentences of each voice in each manner."""


def speak(folder: Path) -> dict[str, str]:
    """Writes the corpus: clips, labels.csv and new_clips; returns the manner of each new file."""
    draw = random.Random(0)
    rows, answers = [], {}
    for name in ("clips", "new_clips"):
        (folder / name).mkdir(parents=True)
    for number, voice in enumerate(VOICES):
        for manner, ranges in MANNERS.items():
            for take, sentence in enumerate(draw.sample(SENTENCES, LABELLED + NEW)):
                pitch, speed, loudness = (str(draw.randint(*limits)) for limits in ranges)
                is_new = take >= LABELLED
                name = f"voice{number}-{len(rows) + len(answers):03d}"
                file = folder / ("new_clips" if is_new else "clips") / f"{name}.wav"
                options = ["-v", voice, "-p", pitch, "-s", speed, "-a", loudness, "-w", str(file)]
                subprocess.run(["espeak-ng", *options, sentence], check=True)
                if is_new:
                    answers[name] = manner
                else:
                    rows.append((file.name, manner, f"voice{number}"))
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as table:
        csv.writer(table).writerows([("file", "label", "speaker"), *rows])
    return answers


def run(folder: Path, command: str, *words: str) -> None:
    """One of the project's commands, in a folder."""
    subprocess.run(
        [sys.executable, "-m", f"msea_lightning.{command}", *words], cwd=folder, check=True
    )


def main() -> None:
    """The corpus, the three commands, and how many of the new files are answered as they are."""
    folder = Path(sys.argv[1])
    expected = speak(folder)
    run(folder, "extract", "input=clips", "labels=labels.csv", "output=my_data")
    run(folder, "train", "dataset=table", "dataset.path=my_data", "trainer.progress_bar=false")
    plugin = max((folder / "runs").rglob("plugin")).relative_to(folder)
    run(folder, "predict", f"plugin={plugin}", "input=new_clips", "output=answers.csv")
    with (folder / "answers.csv").open(encoding="utf-8", newline="") as file:
        found = {row["id"]: row["prediction"] for row in csv.DictReader(file)}
    assert found.keys() == expected.keys()
    right = sum(found[name] == manner for name, manner in expected.items())
    print(f"{right} of {len(expected)} new files have the answer of their manner")


if __name__ == "__main__":
    main()
