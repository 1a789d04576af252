"""Drives the app in headless Chromium as a person would, and takes screenshots to look at.

    python scripts/app_check.py build/app-check

makes clips, trains three short plugins (emotions and sentiment of the demo, and one on the clips;
where the folder has them from before, they are used again), starts the app with all three, asks
about texts, clips and a file that is no clip, and checks what the page shows, that the browser asks
nobody but the app for anything, and that uploads are deleted. Screenshots are 1400 and 400 pixels
wide, light and dark. ``make app-check`` installs Playwright for it. Chromium is expected on the
path.
"""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import skimage
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

MEGABYTES = 2
WIDTHS = (1400, 400)
MOODS = ("happy", "calm", "angry")
WORDS = ("what a lovely day", "it is what it is", "leave me alone at last")


def write_clip(path: Path, *, face: bool = True, sound: bool = True, seconds: int = 4) -> Path:
    """A portrait that drifts over the picture, and a tone that comes and goes."""
    portrait = Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png").convert("RGB")
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("libx264", rate=10)
        pictures.width, pictures.height, pictures.pix_fmt = 480, 360, "yuv420p"
        tone = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        for number in range(10 * seconds):
            image = Image.new("RGB", (480, 360), (40, 60 + number, 90))
            if face and not 12 <= number < 18:
                image.paste(portrait.resize((340, 340)), (10 + 2 * number, 10))
            for packet in pictures.encode(av.VideoFrame.from_image(image)):
                container.mux(packet)
        container.mux(pictures.encode(None))
        if tone is not None:
            frame = av.AudioFrame.from_ndarray(wave(seconds)[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
            container.mux(tone.encode(frame))
            container.mux(tone.encode(None))
    return path


def wave(seconds: int) -> NDArray[np.float32]:
    """(n,) samples of a tone that swells three times."""
    time = np.arange(16000 * seconds) / 16000
    swell = np.abs(np.sin(3 * np.pi * time / seconds))
    return (0.4 * swell * np.sin(2 * np.pi * (220 + 40 * time) * time)).astype(np.float32)


def make_plugins(folder: Path) -> list[Path]:
    """Plugins of the demo's emotions, the demo's sentiment, and of features of clips."""
    clips = folder / "clips"
    clips.mkdir()
    with (clips / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("file", "text", "label", "split"))
        for number in range(12):
            name = write_clip(clips / f"{number}.mp4", seconds=2 + number % 3).name
            split = ("train", "valid", "test")[max(0, number // 3 - 1)]
            rows.writerow((name, WORDS[number % 3], MOODS[number % 3], split))
    command("extract", f"input={clips}", f"output={folder / 'table'}", f"labels={clips}/labels.csv")
    found = []
    for name, options in {
        "emotions": ["dataset.demo_utterances=200"],
        "sentiment": ["dataset.demo_utterances=200", "dataset.demo_task=msa"],
        "clips": ["dataset=table", f"dataset.path={folder / 'table'}"],
    }.items():
        runs = folder / "runs" / name
        command("train", *options, "training.schedule_epochs=3", f"runs={runs}")
        found += runs.glob("**/plugin")
    return found


def command(name: str, *options: str) -> None:
    """Runs one of the project's commands; its output is shown where it fails."""
    words = [sys.executable, "-m", f"msea_lightning.{name}", *options]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")


class Visit:
    """A browser window with the page; it notes what the page asks for and complains of."""

    def __init__(self, browser: Browser, address: str, width: int, scheme: str) -> None:
        self.page: Page = browser.new_page(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if scheme == "dark" else "light",
        )
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console",
            lambda line: self.complaints.append(line.text) if line.type == "error" else None,
        )
        self.page.goto(address)
        self.result = self.page.locator("#result")
        expect(self.result).to_contain_text("press Answer", timeout=30_000)

    def choose(self, plugin: str) -> None:
        """Switches to another plugin."""
        self.page.get_by_label(plugin, exact=True).check()
        kind = "sentiment" if "sentiment" in plugin else "an emotion"
        where = plugin.partition(" ")[0]
        expect(self.page.locator(".msea-about")).to_contain_text(f"{kind}. Trained on {where}")

    def write(self, text: str) -> None:
        """Types a text."""
        self.page.locator("#text textarea").fill(text)

    def give(self, clip: Path, where: str = "Video") -> None:
        """Uploads a clip."""
        self.page.get_by_role("tab", name=where).click()
        upload = self.page.locator(f"#{where.lower()} input[type=file]")
        upload.set_input_files(clip)
        expect(upload).to_have_count(0, timeout=15_000)

    def answer(self, *expected: str) -> None:
        """Asks, and waits for what the answer has to show."""
        self.page.locator("#answer").click()
        for text in expected:
            expect(self.result).to_contain_text(text, timeout=60_000)
        self.page.wait_for_timeout(400)

    def clear(self) -> None:
        """Empties the form."""
        for toast in self.page.get_by_test_id("toast-close").all():
            toast.click()
        self.page.locator("#clear").click()
        expect(self.result).to_contain_text("press Answer")


def look(visit: Visit, folder: Path, name: str) -> None:
    """Takes a screenshot of the whole page, which must not be wider than the window."""
    wide = visit.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0, f"{name}: the page is {wide} pixels wider than the window"
    visit.page.screenshot(path=folder / f"{name}.png", full_page=True)


def drive(visit: Visit, clips: Path, folder: Path, name: str) -> None:
    """Everything that a person does, with a screenshot of each state."""
    visit.choose("demo (emotions)")
    look(visit, folder, f"start-{name}")
    visit.answer("nothing to answer yet")
    visit.write("what a <b>lovely</b> day <img src=x onerror=document.title='broken'> ${1+1} {{2}}")
    visit.answer("All answers", "probability")
    look(visit, folder, f"emotions-{name}")
    expect(visit.page.locator("#clips")).to_be_hidden()
    visit.choose("demo (sentiment)")
    expect(visit.result).to_contain_text("80 % interval", timeout=30_000)
    look(visit, folder, f"sentiment-{name}")
    visit.choose("table (emotions)")
    visit.write(WORDS[0])
    visit.give(clips / "clip.mp4")
    visit.answer("What each modality contributed", "emotion of the face", "loudness")
    look(visit, folder, f"clip-{name}")
    visit.clear()
    visit.give(clips / "faceless.mp4")
    visit.answer("has no sound", "No face was found")
    look(visit, folder, f"faceless-{name}")
    visit.clear()
    visit.give(clips / "broken.mp4")
    visit.answer("broken.mp4 cannot be decoded")
    expect(visit.result).not_to_contain_text("msea_lightning-app-")
    look(visit, folder, f"broken-{name}")
    visit.clear()
    visit.give(clips / "tone.wav", "Sound")
    visit.answer("has no pictures", "loudness")
    look(visit, folder, f"sound-{name}")
    assert visit.page.title() == "msea_lightning"


def check_limit(visit: Visit, clips: Path) -> None:
    """A clip that is too large is refused, and the page says so."""
    visit.choose("table (emotions)")
    visit.page.get_by_role("tab", name="Video").click()
    visit.page.locator("#video input[type=file]").set_input_files(clips / "large.mp4")
    expect(visit.page.locator(".toast-body")).to_contain_text("maximum", timeout=15_000)


def main(folder: Path) -> None:
    """Makes everything, serves, drives, and ends the app."""
    shots, clips = folder / "screenshots", folder / "given"
    for made in (shots, clips):
        made.mkdir(parents=True, exist_ok=True)
    write_clip(clips / "clip.mp4", seconds=6)
    write_clip(clips / "faceless.mp4", face=False, sound=False)
    (clips / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42 and then nothing of a clip")
    (clips / "large.mp4").write_bytes(bytes(MEGABYTES * 1_100_000))
    with av.open(str(clips / "tone.wav"), "w") as container:
        tone = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        samples = (wave(5) * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 16000
        container.mux(tone.encode(frame))
        container.mux(tone.encode(None))
    plugins = sorted(folder.glob("runs/**/plugin")) or make_plugins(folder)
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    words = [
        *(sys.executable, "-m", "msea_lightning.app", "port=0", "open_browser=false"),
        f"plugin=[{','.join(map(str, plugins))}]",
        f"max_upload={MEGABYTES}",
    ]
    served = subprocess.Popen(
        words,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert served.stderr is not None
    try:
        line = next(line for line in served.stderr if "the app is at" in line)
        address = line.split("the app is at ")[1].split()[0]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
            for scheme in ("light", "dark"):
                for width in WIDTHS:
                    visit = Visit(browser, address, width, scheme)
                    drive(visit, clips, shots, f"{width}-{scheme}")
                    outside = [
                        url
                        for url in visit.requests
                        if not url.startswith((address, "data:", "blob:"))
                    ]
                    assert not outside, f"the page asked for {outside}"
                    assert not visit.complaints, f"the browser complains: {visit.complaints}"
                    check_limit(visit, clips)
                    visit.page.close()
            browser.close()
        assert list(temporary.rglob("*.mp4")), "uploads were expected to be there"
    finally:
        served.send_signal(signal.SIGTERM)
        served.wait(30)
    assert not list(temporary.glob("msea_lightning-app-*")), (
        "uploads are left after the app has ended"
    )
    print(f"all is well; look at the screenshots in {shots}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()).resolve())
