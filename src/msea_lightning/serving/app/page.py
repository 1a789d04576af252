"""The form, laid out with Gradio: what is given on the left, the answer on the right."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msea_lightning.config.errors import UserError
from msea_lightning.features.packages import load_package
from msea_lightning.plugin import Predictor
from msea_lightning.serving.app import drawing
from msea_lightning.serving.app.asking import LONGEST_TEXT, QuestionError, ask, knows_clips

_log = logging.getLogger(__name__)

KEPT_SECONDS = 1800
"""How long an uploaded clip is kept, so that it can be asked about again."""

_HEAD = (
    '<div class="msea-head"><h1>Try a plugin</h1><p>A text, a clip, or both: the frozen language '
    "model reads, hears and sees, and answers. Nothing leaves the machine that runs this "
    "app.</p></div>"
)
_FOOT = (
    '<div class="msea-foot">Uploads are deleted after half an hour, and when the app ends. '
    "An answer is a guess at how people would label a recording, not what somebody feels. In the "
    "European Union emotions of people at work or in education must not be inferred (AI Act, "
    "Article 5(1)(f); medical and safety reasons excepted).</div>"
)
_START = "Write a text or give a clip, then press Answer."
_NO_CLIPS = (
    "This plugin reads texts alone here: it does not say what its audio and vision features were "
    "extracted with. Train on a table of msea_lightning.extract to try clips."
)
_FAILED = "Something went wrong that should not; the log of the app says what. Try another clip."


def build(predictors: Mapping[str, Predictor], *, max_upload: float) -> Any:
    """The page, a ``gradio.Blocks``.

    Args:
        predictors: Name of each plugin to the predictor that it is attached to.
        max_upload: Megabytes that a clip may have; the page says so, the server holds it.
    """
    gr = load_package("gradio", extra="app")
    first = next(iter(predictors))
    hears = knows_clips(predictors[first], first)

    def switch(plugin: str) -> tuple[Any, ...]:
        knows = knows_clips(predictors[plugin], plugin)
        return (
            drawing.about(predictors[plugin].plugins[plugin].facts),
            gr.update(visible=knows),
            gr.update(visible=not knows),
            drawing.message(_START),
        )

    def answer(plugin: str, text: str | None, video: str | None, sound: str | None) -> str:
        clips = [clip for clip in (video, sound) if clip]
        if not knows_clips(predictors[plugin], plugin):
            clips = []
        return respond(predictors[plugin], plugin, text or "", [Path(clip) for clip in clips])

    def answer_again(plugin: str, text: str | None, video: str | None, sound: str | None) -> Any:
        given = (text or "").strip() or video or sound
        return answer(plugin, text, video, sound) if given else gr.skip()

    with gr.Blocks(
        title="msea_lightning", analytics_enabled=False, delete_cache=(60, KEPT_SECONDS)
    ) as page:
        gr.HTML(_HEAD)
        with gr.Row(elem_id="halves"):
            with gr.Column(min_width=320):
                plugin = gr.Radio(
                    list(predictors), value=first, label="Plugin", visible=len(predictors) > 1
                )
                about = gr.HTML(drawing.about(predictors[first].plugins[first].facts))
                text = gr.Textbox(
                    label="Text",
                    placeholder="What is said",
                    lines=3,
                    max_lines=8,
                    max_length=LONGEST_TEXT,
                    elem_id="text",
                )
                with gr.Column(visible=hears, elem_id="clips") as clips, gr.Tabs():
                    with gr.Tab("Video"):
                        video = gr.Video(
                            label=f"Video, at most {max_upload:g} MB",
                            sources=["upload", "webcam"],
                            webcam_options=gr.WebcamOptions(mirror=False),
                            buttons=[],
                            elem_id="video",
                        )
                    with gr.Tab("Sound"):
                        sound = gr.Audio(
                            label=f"Sound, at most {max_upload:g} MB",
                            sources=["upload", "microphone"],
                            type="filepath",
                            editable=False,
                            buttons=[],
                            elem_id="sound",
                        )
                no_clips = gr.HTML(drawing.message(_NO_CLIPS), visible=not hears)
                with gr.Row():
                    clear = gr.Button("Clear", elem_id="clear")
                    button = gr.Button("Answer", variant="primary", elem_id="answer")
            with gr.Column(min_width=320):
                result = gr.HTML(drawing.message(_START), elem_id="result")
        gr.HTML(_FOOT)
        _take_uploads_only(video)
        _take_uploads_only(sound)

        hidden: dict[str, Any] = {"api_visibility": "private"}
        # What is asked first is answered first: a late answer would replace the newest one.
        in_turn = {**hidden, "concurrency_limit": 1, "concurrency_id": "answer"}
        given = [plugin, text, video, sound]
        for event in (button.click, text.submit):
            event(answer, given, result, **in_turn)
        switched = [about, clips, no_clips, result]
        plugin.change(switch, plugin, switched, show_progress="hidden", **in_turn).then(
            answer_again, given, result, **in_turn
        )
        # One clip at a time: the new one takes the place of the other.
        video.input(lambda: None, None, sound, **hidden)
        sound.input(lambda: None, None, video, **hidden)
        clear.click(
            lambda: ("", None, None, drawing.message(_START)),
            None,
            [text, video, sound, result],
            **hidden,
        )
    # Gradio refuses files that were not uploaded where a page was launched by itself, not where it
    # is mounted in an application.
    page.has_launched = True
    return page


def respond(predictor: Predictor, plugin: str, text: str, clips: list[Path]) -> str:
    """The answer as HTML, or what is wrong with the question."""
    try:
        if len(clips) > 1:
            raise QuestionError("There are a video and a sound: remove one of them.")
        return drawing.reply(ask(predictor, plugin, text, clips[0] if clips else None))
    except UserError as error:
        return drawing.message(str(error), alarm=True)
    except Exception:
        _log.exception("no answer")
        return drawing.message(_FAILED, alarm=True)


def _take_uploads_only(component: Any) -> None:
    """Keeps a component of Gradio from reading a file that nobody uploaded.

    A client may name any path or address as its file. Set on the object, because a subclass makes
    Gradio write a file beside its source.
    """
    uploads = load_package("gradio.utils", extra="app").get_upload_folder
    move = component.async_move_resource_to_block_cache

    async def move_upload(place: str | Path | None) -> Any:
        folder = Path(uploads()).resolve()
        if place is not None and not Path(place).resolve().is_relative_to(folder):
            raise QuestionError("A clip has to be uploaded: paths and addresses are not read.")
        return await move(place)

    component.async_move_resource_to_block_cache = move_upload
