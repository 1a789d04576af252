"""What callers send: utterances as JSON, or a clip in a form. Nothing pickled is ever read."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile

from msea_lightning.config.errors import UserError
from msea_lightning.data.files.arrays import read_array
from msea_lightning.data.utterance import Utterance
from msea_lightning.language.options import Decode

MOST_UTTERANCES = 1024
"""Most utterances in one request."""

MOST_CHARACTERS = 100_000
"""Most characters of a text: all are tokenised, although a plugin reads the first tokens alone."""

MOST_CHARACTERS_TOGETHER = 1_000_000
"""Most characters of all texts in one request."""

_FIELDS = ("plugin", "decode", "id", "text", "start", "end", "media")
"""What a form may have."""


_FLAWS = {
    "missing": "is missing",
    "too_short": "is empty",
    "list_type": "is no list",
    "string_type": "is no text",
    "model_type": "is no object",
    "model_attributes_type": "is no object",
    "float_parsing": "is no number",
    "finite_number": "is no finite number",
}
"""What is wrong at a place, by the name that pydantic has for it."""


class BodyError(UserError):
    """A request that cannot be read."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class UtteranceBody(_Body):
    """One utterance; features are (L, d) frames, as lists or as ``{"npy": ...}``."""

    id: str = ""
    text: str = ""
    audio: Any = None
    vision: Any = None

    def utterance(self) -> Utterance:
        """The utterance; DataError, ReadError or BodyError where its features are no arrays."""
        given = {"audio": self.audio, "vision": self.vision}
        features = {
            name: _array(self.id, name, value) for name, value in given.items() if value is not None
        }
        return Utterance(self.id, self.text, features=features)


class PredictBody(_Body):
    """The JSON of ``POST /predict``."""

    plugin: str | None = None
    decode: Decode | None = None
    utterances: list[UtteranceBody] = Field(min_length=1, max_length=MOST_UTTERANCES)


class ClipForm(_Body):
    """The form of ``POST /predict``, without its file."""

    plugin: str | None = None
    decode: Decode | None = None
    id: str = ""
    text: str = ""
    start: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    end: float | None = Field(default=None, ge=0, allow_inf_nan=False)


def read_json(content: bytes) -> PredictBody:
    """The body of a request as JSON; BodyError naming every place that is wrong."""
    try:
        return PredictBody.model_validate_json(content)
    except ValidationError as error:
        raise BodyError(_explained(error)) from error


def read_form(form: FormData) -> tuple[ClipForm, UploadFile]:
    """The fields of a form and its file ``media``; BodyError where it has others, or none."""
    values = form.multi_items()
    names = [name for name, _ in values]
    if unknown := sorted({name for name in names if name not in _FIELDS}):
        raise BodyError(f"{', '.join(unknown)}: no such field. Fields are {', '.join(_FIELDS)}.")
    if len(set(names)) < len(names):
        raise BodyError("A field is given twice: give each once, a clip to a request.")
    media = form.get("media")
    if not isinstance(media, UploadFile):
        raise BodyError("media is missing: the sound or video file, as a file of the form.")
    fields = {name: value for name, value in values if name != "media" and value != ""}
    try:
        return ClipForm.model_validate(fields), media
    except ValidationError as error:
        raise BodyError(_explained(error)) from error


def check_texts(utterances: Iterable[Utterance]) -> None:
    """Refuses texts that would take long to tokenise; BodyError."""
    together = 0
    for utterance in utterances:
        together += len(utterance.text)
        if len(utterance.text) > MOST_CHARACTERS:
            raise BodyError(
                f"utterance {utterance.id!r}: the text has {len(utterance.text):,} characters, and "
                f"{MOST_CHARACTERS:,} are read at most: cut it."
            )
    if together > MOST_CHARACTERS_TOGETHER:
        raise BodyError(
            f"The texts have {together:,} characters together, and {MOST_CHARACTERS_TOGETHER:,} "
            "are read at most in a request: send fewer at a time."
        )


def limited(request: Request, most: int) -> Request:
    """The request, reading of whose body ends in a :class:`TooLargeError` beyond so many bytes.

    Its ``state.is_read`` says whether all of the body has come.

    Raises:
        TooLargeError: at once, where the request says that it is larger.
    """
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > most:
        raise TooLargeError(most)
    read = 0

    async def receive() -> Any:
        nonlocal read
        message = await request.receive()
        read += len(message.get("body", b""))
        if read > most:
            raise TooLargeError(most)
        request.state.is_read = not message.get("more_body", False)
        return message

    return Request(request.scope, receive)


class SlowBodyError(BodyError):
    """A request that did not come whole in time."""


class TooLargeError(BodyError):
    """A request with more bytes than are read."""

    def __init__(self, most: int) -> None:
        super().__init__(
            f"The request is larger than the {most / 1e6:g} MB that this server reads: send less "
            "at a time, or start the server with a higher max_upload."
        )


def _array(id: str, name: str, value: Any) -> Any:
    """What a caller gave as an array: lists as they are, or what its ``.npy`` file holds."""
    what = f"utterance {id!r}: {name}"
    if isinstance(value, list):
        return value
    if not (isinstance(value, dict) and list(value) == ["npy"] and isinstance(value["npy"], str)):
        raise BodyError(
            f'{what} is no array. Give a list of lists of numbers, or {{"npy": "..."}} with the '
            "base64 of a .npy file."
        )
    try:
        file = base64.b64decode(value["npy"], validate=True)
    except ValueError as error:
        raise BodyError(f"{what}.npy is no base64 ({error}).") from error
    array = read_array(io.BytesIO(file), f"{what}.npy")
    if array.dtype.kind not in "fiu":
        raise BodyError(f"{what}.npy holds no numbers: its type is {array.dtype}.")
    return array


def _explained(error: ValidationError) -> str:
    """The places that are wrong, without what the caller wrote there."""
    found: Sequence[Any] = error.errors(include_url=False, include_input=False)
    places = [f"{_place(one['loc'])} {_flaw(one)}" for one in found[:3]]
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return f"{'; '.join(places)}{more}."


def _place(keys: Sequence[str | int]) -> str:
    """A place in a body, such as ``utterances[0].text``."""
    parts = [f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys]
    return "".join(parts).removeprefix(".") or "The body"


def _flaw(error: Mapping[str, Any]) -> str:
    """What is wrong at a place, in words."""
    kind, limits = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return "is no key that is known here"
    if kind == "json_invalid":
        return f"is no JSON ({limits['error']})"
    if kind == "enum":
        return f"is none of {limits['expected']}"
    if kind == "too_long":
        return f"has more than {limits['max_length']:,} entries"
    if kind == "greater_than_equal":
        return f"is below {limits['ge']:g}"
    return _FLAWS.get(kind) or f"is wrong ({error['msg']})"
