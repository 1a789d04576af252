"""What callers send: utterances as JSON, or a clip in a form. Nothing pickled is ever read."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile

from msea_lightning.config.errors import UserError
from msea_lightning.data.utterance import Utterance
from msea_lightning.language.options import Decode

MOST_UTTERANCES = 1024
"""Most utterances in one request."""

_FIELDS = ("plugin", "decode", "id", "text", "start", "end", "media")
"""What a form may have."""


class BodyError(UserError):
    """A request that cannot be read."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ArrayBody(_Body):
    """An array of numbers as base64 of a ``.npy`` file (``numpy.save``)."""

    npy: str


class UtteranceBody(_Body):
    """One utterance; features are (L, d) frames, as lists or as an array."""

    id: str = ""
    text: str = ""
    audio: list[Any] | ArrayBody | None = None
    vision: list[Any] | ArrayBody | None = None

    def utterance(self) -> Utterance:
        """The utterance; DataError or BodyError where its features are no arrays of numbers."""
        given = {"audio": self.audio, "vision": self.vision}
        features = {
            name: _array(self.id, name, value.npy) if isinstance(value, ArrayBody) else value
            for name, value in given.items()
            if value is not None
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


def limited(request: Request, most: int) -> Request:
    """The request, reading of whose body ends in a :class:`TooLargeError` beyond so many bytes.

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
        return message

    return Request(request.scope, receive)


class TooLargeError(BodyError):
    """A request with more bytes than are read."""

    def __init__(self, most: int) -> None:
        super().__init__(
            f"The request is larger than the {most / 1e6:g} MB that this server reads: send less "
            "at a time, or start the server with a higher max_upload."
        )


def _array(id: str, name: str, content: str) -> NDArray[Any]:
    """The array in base64 of a ``.npy`` file."""
    try:
        file = io.BytesIO(base64.b64decode(content, validate=True))
        array = np.lib.format.read_array(file, allow_pickle=False)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"its type is {array.dtype}")
    except (binascii.Error, ValueError, EOFError, OverflowError, MemoryError) as error:
        raise BodyError(
            f"utterance {id!r}: {name}.npy is no base64 of a .npy file with numbers "
            f"({str(error)[:200]}). Write it with numpy.save(..., allow_pickle=False)."
        ) from error
    return np.asarray(array)


def _explained(error: ValidationError) -> str:
    """The places that are wrong, without what the caller wrote there."""
    found: Sequence[Any] = error.errors(include_url=False, include_input=False)
    places = [f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in found[:3]]
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return f"{'; '.join(places)}{more}."
