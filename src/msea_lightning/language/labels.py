"""Label spaces: label <-> the answer string that a language model writes for it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from msea_lightning.config.errors import UserError
from msea_lightning.data.options import LabelConfig, LabelKind, LabelWords


class LabelSpaceError(UserError):
    """A label outside the label space, or a label space that cannot be written."""


class LabelSpace(ABC):
    """All labels of a data set and how a language model writes them.

    Attributes:
        answers: Every legal answer string, in ascending order of the label.
        values: What each answer means: the intensity (MSA) or the class number (ERC).
        signed: Whether intensities of zero and above are written with a plus sign.
        ordered: Whether the mean and the median of labels mean something.
    """

    answers: list[str]
    values: list[float]
    signed: bool = False
    ordered: ClassVar[bool]

    @abstractmethod
    def text(self, label: float | str) -> str:
        """The answer string that training teaches for a label; an error names what is legal."""

    @abstractmethod
    def target(self, label: float | str) -> float:
        """The number that metrics compare: the intensity itself, or the class number."""

    @abstractmethod
    def label(self, value: float) -> float | str:
        """The label that a decoded value stands for: an intensity, or an emotion's name."""

    @staticmethod
    def from_config(
        config: LabelConfig, *, signed: bool | None, encode: Callable[[str], list[int]]
    ) -> LabelSpace:
        """The label space that a resolved :class:`LabelConfig` describes.

        ``signed`` says whether the backbone writes a plus sign (paper, "Metrics"; Qwen). None takes
        the way in which the tokenizer writes all intensities with equally many tokens: as they are,
        else with the sign; as they are where neither does.
        """
        if config.kind is LabelKind.emotions:
            return EmotionSet(config.names, config.words)
        assert config.low is not None
        assert config.high is not None
        ways = [
            SentimentScale(config.low, config.high, config.step or 0.1, signed=sign)
            for sign in (False, True)
        ]
        if signed is not None:
            return ways[signed]
        for way in ways:
            if len({len(encode(answer)) for answer in way.answers}) == 1:
                return way
        return ways[0]


class SentimentScale(LabelSpace):
    """Sentiment intensities from ``low`` to ``high`` in steps (MSA).

    A label is rounded to the nearest step as the original implementation does it: as float32,
    half-way cases to even (1.25 is written "1.2", -0.04 is written "-0.0"). Both "-0.0" and "0.0"
    are legal answers where the scale spans zero.

    With ``signed``, intensities of zero and above are written "+0.4" instead of "0.4".
    """

    ordered = True

    def __init__(self, low: float, high: float, step: float = 0.1, *, signed: bool = False) -> None:
        decimals = len(f"{step:.9f}".rstrip("0").partition(".")[2])
        self._format = f"{'+' if signed else ''}.{decimals}f"
        self._power_of_ten = np.isclose(step, 10.0**-decimals)
        first, last = round(low / step), round(high / step)
        if not (np.isclose(first * step, low) and np.isclose(last * step, high) and first < last):
            raise LabelSpaceError(
                f"A scale from {low} to {high} in steps of {step}: both ends must be multiples of "
                "the step, the lower one first. Set dataset.labels.low, .high and .step."
            )
        self.low, self.high, self.step, self.signed = low, high, step, signed
        grid = [k * step for k in range(first, last + 1)]
        if self._power_of_ten and low < 0 <= high:
            grid.insert(-first, -0.0)
        self.answers = [format(value, self._format) for value in grid]
        self.values = [float(answer) for answer in self.answers]

    def text(self, label: float | str) -> str:
        """See the base class.

        A label of minus zero with a sign is written "+0.0", where the original writes "+-0.0".
        """
        value = self.target(label)
        if self.signed and value == 0:
            value = 0.0
        rounded = value if self._power_of_ten else round(value / self.step) * self.step
        answer = format(rounded, self._format)
        if not self.low - 1e-6 <= float(answer) <= self.high + 1e-6:
            raise LabelSpaceError(
                f"Label {label} is outside the scale from {self.low} to {self.high}."
            )
        return answer

    def target(self, label: float | str) -> float:
        """The intensity as float32, the precision that the original's labels have."""
        try:
            value = float(np.float32(label))
        except ValueError as error:
            raise LabelSpaceError(
                f"Label {label!r} is not a number; this data set's labels are intensities from "
                f"{self.low} to {self.high}."
            ) from error
        if not np.isfinite(value):
            raise LabelSpaceError(f"Label {label} is not finite.")
        return value

    def label(self, value: float) -> float:
        """The intensity itself."""
        return value


class EmotionSet(LabelSpace):
    """A fixed set of emotions (ERC); emotion i is written as the number i, or by its name.

    With more than ten emotions all numbers have two digits, so that none begins another.

    Attributes:
        names: The emotions in order.
        words: How they are written.
    """

    ordered = False

    def __init__(self, names: Sequence[str], words: LabelWords = LabelWords.digits) -> None:
        self.names = list(names)
        self.words = words
        width = len(str(len(names) - 1))
        self.answers = [f"{index:0{width}d}" for index in range(len(names))]
        if words is LabelWords.names:
            self.answers = list(names)
        self.values = [float(index) for index in range(len(names))]

    def text(self, label: float | str) -> str:
        """See the base class."""
        return self.answers[int(self.target(label))]

    def target(self, label: float | str) -> float:
        """The class number."""
        try:
            return float(self.names.index(str(label)))
        except ValueError as error:
            raise LabelSpaceError(
                f"Label {label!r} is none of the emotions {', '.join(self.names)}."
            ) from error

    def label(self, value: float) -> str:
        """The emotion's name."""
        return self.names[int(value)]


def listed(space: LabelSpace) -> str:
    """The legal answers as a prompt lists them: ``<joy:0, anger:1>``, or ``[-1.0, 1.0]``."""
    if not isinstance(space, EmotionSet):
        return f"[{space.answers[0]}, {space.answers[-1]}]"
    if space.words is LabelWords.names:
        return f"<{', '.join(space.names)}>"
    pairs = zip(space.names, space.answers, strict=True)
    return f"<{', '.join(f'{name}:{answer}' for name, answer in pairs)}>"


def filled_prompt(task: str, space: LabelSpace) -> str:
    """A task prompt with the legal answers in place of ``{labels}``.

    Raises:
        LabelSpaceError: if the prompt asks for numbers, but emotions are written by name.
    """
    if isinstance(space, EmotionSet) and space.words is LabelWords.names:
        for name in space.names:
            if found := re.search(rf"{re.escape(name)}\s*[:：]\s*\d", task):
                raise LabelSpaceError(
                    f"The task prompt asks for numbers ({found[0]!r}), but emotions are written "
                    "by name (dataset.labels.words=names). Choose prompt=en, prompt=zh or "
                    "prompt=none, or give another prompt.task."
                )
    return task.replace("{labels}", listed(space))


def generated_prompt(space: LabelSpace, language: str) -> str:
    """A prompt in the paper's wording (Fig. 3), in ``en`` or ``zh``, for sets without their own."""
    labels = listed(space)
    if isinstance(space, EmotionSet):
        return {
            "en": "Please recognize the emotion of the above multimodal content from the target "
            f"set {labels}. Assistant: The emotion is",
            "zh": f"请选择适用于上述多模态内容的情绪标签：{labels}。助手: 情绪为",
        }[language]
    return {
        "en": "Please predict the sentiment intensity of the above multimodal content in the "
        f"range {labels}. Assistant: The sentiment is",
        "zh": f"请对上述多模态内容的情感强度进行预测，范围在{labels}之间。响应: 情感为",
    }[language]
