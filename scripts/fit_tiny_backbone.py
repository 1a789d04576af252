"""Fits the tiny backbone that ships with the project, and writes it with its tokenizer.

The tiny backbone is a small LLaMA for demos and tests. It is fitted on nothing but text that this
script generates from ``tiny_lexicon.txt``: clauses with sentiment and emotion words of English and
Chinese, followed by the task prompts and the answers in the exact sequence layout of the
framework. Some of its pseudo-token slots carry mixtures of word embeddings instead of learned
tokens, so that the frozen model reads vectors in that place, too: an adapter needs something to
talk to. It never sees audio, vision, or a real data set.

    python scripts/fit_tiny_backbone.py [--out FOLDER] [--steps N] [--seed N]

Everything is seeded; the result is the same for the same versions, threads and hardware.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import math
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

logger = logging.getLogger("fit_tiny_backbone")

HERE = Path(__file__).resolve().parent
ASSETS = HERE.parent / "src" / "msea_lightning" / "backbone" / "assets" / "tiny"
SEED = 20250801
LINES = 120_000
WIDTH, LAYERS, HEADS, MLP = 96, 3, 4, 256
POSITIONS = 1024
SPECIALS = ("<unk>", "<s>", "</s>", "<pad>")

# Valence of the emotions, on the scale [-3, 3] of the lexicon's levels.
VALENCE = {
    "joy": 2.2, "sadness": -1.8, "anger": -2.2, "fear": -1.6, "surprise": 0.4, "disgust": -2.3,
    "neutral": 0.0, "excitement": 2.0, "frustration": -1.5, "contempt": -2.0, "love": 2.6,
    "confusion": -0.6, "boredom": -1.2, "pride": 1.7, "shame": -1.4, "anxiety": -1.3,
    "relief": 1.2, "gratitude": 2.0,
}  # fmt: skip
POLARITIES = ("positive", "negative", "neutral")

# Label sets in the orders that data sets and alphabets give them.
COMMON_SETS = (
    ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"),
    ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"),
    ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"),
    ("angry", "disgusted", "fearful", "happy", "neutral", "sad", "surprised"),
    ("anger", "boredom", "disgust", "fear", "happiness", "neutral", "sadness"),
    ("happy", "sad", "neutral", "angry", "excited", "frustrated"),
    ("angry", "happy", "neutral", "sad"),
    ("anger", "joy", "neutral", "sadness"),
    ("negative", "positive"),
    ("positive", "negative"),
    ("negative", "neutral", "positive"),
    ("愤怒", "厌恶", "恐惧", "高兴", "平静", "悲伤", "惊奇"),
    ("消极", "积极"),
    ("负面", "正面"),
)

# Pieces that words outside the lexicon are cut into, besides single letters.
PIECES = [
    "s",
    "es",
    "ed",
    "d",
    "ing",
    "er",
    "ers",
    "est",
    "ly",
    "y",
    "ies",
    "ied",
    "'s",
    "'t",
    "n't",
    "'m",
    "'re",
    "'ve",
    "'ll",
    "'d",
    "ness",
    "ment",
    "ments",
    "tion",
    "tions",
    "sion",
    "able",
    "ible",
    "ful",
    "less",
    "ous",
    "ive",
    "al",
    "ial",
    "ical",
    "ic",
    "ity",
    "ty",
    "re",
    "un",
    "dis",
    "in",
    "im",
    "pre",
    "con",
    "com",
    "pro",
    "ex",
    "de",
    "be",
    "en",
    "an",
    "on",
    "at",
    "or",
    "ar",
    "th",
    "st",
    "ch",
    "sh",
    "ck",
    "ll",
    "ss",
    "tt",
    "nn",
    "mm",
    "pp",
    "rr",
    "ff",
    "ee",
    "oo",
    "ea",
    "ou",
    "ai",
    "ie",
    "oa",
    "ow",
    "ew",
    "ay",
    "ey",
    "er",
    "ir",
    "ur",
    "el",
    "il",
    "ol",
    "ul",
    "le",
    "ve",
    "se",
    "ce",
    "ge",
    "te",
    "ne",
    "me",
    "ke",
    "pe",
    "ph",
    "qu",
    "wh",
    "wr",
    "gh",
    "ght",
    "nt",
    "nd",
    "ng",
    "nk",
    "mp",
    "mb",
    "ld",
    "lt",
    "rd",
    "rt",
    "rm",
    "rn",
    "rk",
    "rl",
    "rs",
    "sk",
    "sp",
    "sm",
    "sn",
    "sl",
    "sc",
    "sw",
    "tr",
    "tw",
    "th",
    "br",
    "bl",
    "cr",
    "cl",
    "dr",
    "fr",
    "fl",
    "gr",
    "gl",
    "pr",
    "pl",
    "str",
    "ter",
    "der",
    "ver",
    "ber",
    "per",
    "ther",
    "ker",
    "ner",
    "mer",
    "ler",
    "ger",
    "ing",
    "ang",
    "ong",
    "ung",
    "ent",
    "ant",
    "ate",
    "ite",
    "ine",
    "ain",
    "ion",
    "ish",
    "ist",
    "ize",
    "ise",
    "age",
    "ack",
    "ick",
    "ock",
    "uck",
    "ell",
    "ill",
    "all",
    "est",
    "ost",
    "ust",
    "and",
    "end",
    "ind",
    "ard",
    "ord",
    "ure",
    "ore",
    "are",
    "ire",
    "ight",
]


# --------------------------------------------------------------------------------------------------
# Lexicon and tokenizer


def read_lexicon(path: Path = HERE / "tiny_lexicon.txt") -> dict[str, list[str]]:
    """Section name -> its words; a section that occurs twice is one list."""
    sections: dict[str, list[str]] = {}
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            words = sections.setdefault(line.strip("[] \n"), [])
        elif not line.startswith("#"):
            words.extend(word.replace("_", " ") for word in line.split())
    return {name: list(dict.fromkeys(entries)) for name, entries in sections.items()}


def build_tokenizer(lexicon: dict[str, list[str]]) -> PreTrainedTokenizerFast:
    """A Unigram tokenizer with byte fallback that writes digits one by one, as LLaMA's does.

    All pieces cost about the same, so a text is cut into as few of them as can be.
    """
    words: dict[str, None] = {}  # an ordered set
    for section, entries in lexicon.items():
        language, kind = section.split()[:2]
        if language == "zh":
            continue
        for entry in entries:
            for word in entry.split():
                words[f"▁{word}"] = None
        title = kind in ("name", "adj", "interjection", "negator", "person", "starter")
        upper = kind not in ("starter", "object")
        for entry in entries:
            for word in entry.split():
                if title:
                    words[f"▁{word[0].upper()}{word[1:]}"] = None
                if upper:
                    words[f"▁{word.upper()}"] = None
    # Words of the prompts, and names and prompt words without a blank before them.
    for prompt_word in re.findall(r"[A-Za-z]+", " ".join(EN_PROMPT_PARTS)):
        words[f"▁{prompt_word}"] = None
    for section, entries in lexicon.items():
        if section.startswith("en name"):
            for entry in entries:
                words[entry] = None
    words["Multimodal"] = words["multimodal"] = None
    for piece in PIECES:
        words[piece] = words[piece.upper()] = None
    chinese: dict[str, None] = {}
    for section, entries in lexicon.items():
        if section.startswith("zh"):
            for entry in entries:
                if section != "zh character":
                    chinese[entry] = None
                for character in entry:
                    chinese[character] = None
    for piece in re.findall(r"[\u4e00-\u9fff]+", " ".join(ZH_PROMPT_PARTS)):
        chinese[piece] = None
        for character in piece:
            chinese[character] = None
    for character in "，。！？、：；“”‘’（）《》…—":
        chinese[character] = None

    single = ["▁", *(chr(code) for code in range(33, 127)), "▁-", "▁+", "▁<", '▁"', "▁(", "▁["]
    vocabulary: dict[str, float] = dict.fromkeys(SPECIALS, 0.0)
    vocabulary.update((f"<0x{byte:02X}>", -1000.0) for byte in range(256))
    vocabulary.update((piece, -13.0) for piece in single if piece not in vocabulary)
    for piece in [*words, *chinese]:
        vocabulary.setdefault(piece, -10.0 - 0.01 / len(piece))

    tokenizer = Tokenizer(models.Unigram(list(vocabulary.items()), unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


# --------------------------------------------------------------------------------------------------
# Lines: text with a valence and, where it has one, an emotion


@dataclass(frozen=True)
class Line:
    """A generated text.

    Attributes:
        text: The words.
        language: ``en`` or ``zh``.
        valence: Sentiment in [-3, 3].
        emotion: The emotion that the words imply, or None.
        mention: A word of the lexicon's ``en object`` section that occurs in the text, or None.
    """

    text: str
    language: str
    valence: float
    emotion: str | None = None
    mention: str | None = None


CLAUSES = {
    "adj": (
        "the {thing} was {mod}{x}", "the {thing} is {mod}{x}", "it was {mod}{x}", "it is {mod}{x}",
        "it's {mod}{x}", "this {thing} is {mod}{x}", "{mod}{x} {thing}", "a {mod}{x} {thing}",
        "i thought it was {mod}{x}", "that was {mod}{x}", "the {thing} seemed {mod}{x}",
        "{person} found the {thing} {mod}{x}", "{person} felt {mod}{x}", "what a {x} {thing}",
        "and it's just {mod}{x}", "such a {x} {thing}", "they were {mod}{x}", "{mod}{x}",
        "one of the {x} things about the {thing}", "{person} had a {mod}{x} {thing}",
        "there were some {mod}{x} {thing}", "the {thing} had a {mod}{x} {thing}",
    ),
    "verb": (
        "{person} {x} the {thing}", "{person} {x} it", "{person} {mod}{x} this {thing}",
        "{person} would {x} it", "{x} the {thing}", "{person} {x} every {thing}",
        "{person} have to say i {x} the {thing}", "the {thing} will {x} you", "i {mod}{x} that",
    ),
    "noun": (
        "it is a {x}", "what a {x}", "the {thing} is {mod}a {x}", "it was just a {x}", "a {x}",
        "there is a lot of {x}", "a {x} of a {thing}", "nothing but {x}", "this {thing} was a {x}",
    ),
    "adv": ("the {thing} was {x} done", "{x} the {thing} ended", "{x} written", "{x} acted"),
    "interjection": ("{x}", "{x} the {thing}", "{x} what a {thing}"),
}  # fmt: skip
EMOTION_CLAUSES = (
    "i am {x}", "{person} feel {x}", "{x}", "{person} said {x}", "the {thing} and {x}", "so {x}",
    "there was {x} about the {thing}", "i see {x} and the {thing}", "{x} at the {thing}",
    "because of the {x}", "look {x}", "{person} got {x}", "it is {x}", "{x} {person} said",
)  # fmt: skip
ZH_CLAUSES = (
    "{thing}{mod}{x}", "这个{thing}{mod}{x}", "{person}觉得{mod}{x}", "{mod}{x}", "真是{x}",
    "{person}的{thing}{mod}{x}", "{x}的{thing}", "{person}{mod}{x}{thing}", "今天{mod}{x}",
)  # fmt: skip
ZH_EMOTION_CLAUSES = (
    "{person}{x}", "{x}", "{x}了", "{person}说{x}", "{thing}{x}", "因为{x}", "{x}，{person}说",
)  # fmt: skip


class Writer:
    """Writes lines from the lexicon; the same seed writes the same lines."""

    def __init__(self, lexicon: dict[str, list[str]], seed: int) -> None:
        self.lexicon = lexicon
        self.random = random.Random(seed)
        self.easy = False
        loaded = {
            entry
            for section, entries in lexicon.items()
            if re.search(r"[+-][23]$", section)
            for entry in entries
        }
        self.filler = {
            language: [word for word in lexicon[f"{language} filler"] if word not in loaded]
            for language in ("en", "zh")
        }
        # Words differ a little in strength within a level, always in the same way.
        strengths = random.Random(0)
        self.levels: dict[str, list[tuple[str, str, float]]] = {"en": [], "zh": []}
        for section, entries in lexicon.items():
            parts = section.split()
            if len(parts) == 3 and parts[2][0] in "+-":
                for entry in entries:
                    level = float(parts[2]) + strengths.uniform(-0.45, 0.45)
                    self.levels[parts[0]].append((entry, parts[1], level))
        self.emotions = {
            language: [
                section.split()[2] for section in lexicon if section.startswith(f"{language} cue")
            ]
            for language in ("en", "zh")
        }

    def line(self, *, easy: bool = False) -> Line:
        """One more line; an easy one has one clause, without modifiers."""
        self.easy = easy
        draw = self.random.random()
        if draw < 0.04:
            return self._mention()
        language = "zh" if draw < 0.22 else "en"
        kind = self.random.random()
        if kind < 0.52:
            return self._sentiment(language)
        if kind < 0.92:
            return self._emotion(language)
        return Line(self._case(self._salad(language), language), language, 0.0, "neutral")

    def _sentiment(self, language: str) -> Line:
        count = 1 if self.easy else self.random.choices((1, 2, 3), (0.55, 0.33, 0.12))[0]
        positive = self.random.random() < 0.5
        clauses, values = [], []
        for _ in range(count):
            if self.random.random() < 0.25:
                positive = not positive
            word, kind, level = self._pick(language, positive)
            text, value = self._clause(language, word, kind, level)
            clauses.append(text)
            values.append(value)
        turn = count > 1 and self.random.random() < 0.35
        if turn:
            link = (
                f" {self._choice(language, 'but')} "
                if language == "en"
                else ("，" + self._choice(language, "but"))
            )
            text = self._join(clauses[:-1], language) + link + clauses[-1]
            valence = 0.35 * sum(values[:-1]) / (count - 1) + 0.75 * values[-1]
        else:
            text = self._join(clauses, language)
            valence = sum(values) / count * (1 + 0.15 * (count - 1))
        text = self._pad(text, language)
        return Line(self._case(text, language), language, max(-3.0, min(3.0, valence)))

    def _pick(self, language: str, positive: bool) -> tuple[str, str, float]:
        while True:
            word, kind, level = self.random.choice(self.levels[language])
            if (level > 0) is positive:
                return word, kind, level

    def _clause(self, language: str, word: str, kind: str, level: float) -> tuple[str, float]:
        draw = self.random.random()
        if self.random.random() < 0.2 and language == "en":
            # Out of any grammar: the word among words that mean nothing here.
            words = self._salad(language, 1, 8).split()
            if draw < 0.12 and not self.easy:
                return " ".join([*words, self._choice("en", "negator"), word]), -0.6 * level
            words.insert(self.random.randint(0, len(words)), word)
            return " ".join(words), level
        modifier, value = "", level
        if kind in ("adj", "verb") and not self.easy:
            if draw < 0.14:
                modifier, value = self._choice(language, "negator"), -0.6 * level
                if kind == "verb" and language == "en":
                    modifier = self.random.choice(("don't", "didn't", "can't", "never", "not"))
                elif language == "en" and self.random.random() < 0.5:
                    modifier = "not"
            elif draw < 0.38:
                modifier, value = self._choice(language, "strong"), level * 1.25
            elif draw < 0.48:
                modifier, value = self._choice(language, "mild"), level * 0.6
        if language == "zh":
            template = self.random.choice(ZH_CLAUSES)
            if modifier and "{mod}" not in template:
                value = level
        else:
            templates = CLAUSES[kind]
            template = self.random.choice(templates)
            if modifier and "{mod}" not in template:
                value = level
            if kind == "verb":
                word = self._inflect(word)
        blank = " " if modifier and language == "en" else ""
        return self._fill(template, language, word, modifier + blank), value

    def _inflect(self, verb: str) -> str:
        head, _, tail = verb.partition(" ")
        draw = self.random.random()
        stem = head[:-1] if head.endswith("e") else head
        if draw < 0.3:
            head = f"{stem}ed" if not head.endswith("y") else f"{head[:-1]}ied"
        elif draw < 0.4:
            head = f"{stem}ing"
        elif draw < 0.5:
            head = f"{head}s"
        return f"{head} {tail}".strip()

    def _emotion(self, language: str) -> Line:
        emotion = self.random.choice(self.emotions[language])
        cues = list(self.lexicon[f"{language} cue {emotion}"])
        if self.random.random() < 0.25:
            cues = self.lexicon[f"{language} name {emotion}"]
        clauses = []
        for _ in range(1 if self.easy else self.random.choices((1, 2, 3), (0.45, 0.4, 0.15))[0]):
            word = self.random.choice(cues)
            if language == "en" and self.random.random() < 0.3:
                words = self._salad(language, 1, 8).split()
                words.insert(self.random.randint(0, len(words)), word)
                clauses.append(" ".join(words))
                continue
            templates = EMOTION_CLAUSES if language == "en" else ZH_EMOTION_CLAUSES
            clauses.append(self._fill(self.random.choice(templates), language, word, ""))
        text = self._pad(self._join(clauses, language), language)
        valence = VALENCE[emotion] + self.random.uniform(-0.3, 0.3)
        return Line(self._case(text, language), language, valence, emotion)

    def _mention(self) -> Line:
        word = self.random.choice([*self.lexicon["en object"], self.made_up()])
        words = self._salad("en", 1, 8).split()
        words.insert(self.random.randint(0, len(words)), word)
        return Line(self._case(" ".join(words), "en"), "en", 0.0, None, word)

    def made_up(self) -> str:
        """A word that no language has."""
        return "".join(self.random.choices(PIECES[60:], k=self.random.randint(2, 3)))

    def _fill(self, template: str, language: str, word: str, modifier: str) -> str:
        return template.format(
            x=word,
            mod=modifier,
            thing=self._choice(language, "thing"),
            person=self._choice(language, "person"),
        )

    def _choice(self, language: str, kind: str) -> str:
        return self.random.choice(self.lexicon[f"{language} {kind}"])

    def _salad(self, language: str, low: int = 2, high: int = 14) -> str:
        words = self.random.choices(self.filler[language], k=self.random.randint(low, high))
        if language == "en":
            for place, word in enumerate(words):
                draw = self.random.random()
                if draw < 0.06:
                    words[place] = self.made_up()
                elif draw < 0.16:
                    words[place] = self._choice("en", "thing")
                elif draw < 0.18:
                    words[place] = word + self.random.choice(("s", "ed", "ing", "er"))
        return (" " if language == "en" else "").join(words)

    def _join(self, clauses: Sequence[str], language: str) -> str:
        if language == "zh":
            return self.random.choice(("，", "。", "")).join(clauses)
        return self.random.choice((" ", " and ", ", ", ". ", " because ", " so ")).join(clauses)

    def _pad(self, text: str, language: str) -> str:
        blank = " " if language == "en" else "，"
        if self.easy:
            return text
        if self.random.random() < 0.4:
            text = self._salad(language, 1, 8) + blank + text
        if self.random.random() < 0.3:
            text = text + blank + self._salad(language, 1, 8)
        return text

    def _case(self, text: str, language: str) -> str:
        if language == "zh":
            return text + self.random.choice(("", "", "。", "！", "？"))
        draw = self.random.random()
        if draw < 0.3:
            return text.upper()
        if draw < 0.65:
            return text[0].upper() + text[1:] + self.random.choice((".", "!", "", "?"))
        return text


def fitting_lines(count: int = LINES, seed: int = SEED) -> list[Line]:
    """The lines that the tiny backbone is fitted on, all of them; the first quarter is easy."""
    writer = Writer(read_lexicon(), seed)
    return [writer.line(easy=number < count // 4) for number in range(count)]


# --------------------------------------------------------------------------------------------------
# Examples: a line (or none), what is in the slots, a prompt and the answer

EN_SCALE = (
    "Please predict the sentiment intensity of the above multimodal content in the range "
    "[{low}, {high}]. {role}: The sentiment is"
)
EN_EMOTION = (
    "Please recognize the emotion of the above multimodal content from the target set "
    "<{names}>. {role}: The emotion is"
)
ZH_SCALE = "请对上述多模态内容的情感强度进行预测，范围在[{low}, {high}]之间。{role}: 情感为"
ZH_EMOTION = "请选择适用于上述多模态内容的情绪标签：<{names}>。{role}: 情绪为"
EN_PROMPT_PARTS = (EN_SCALE, EN_EMOTION, "Assistant response")
ZH_PROMPT_PARTS = (
    *(part for text in (ZH_SCALE, ZH_EMOTION) for part in re.findall(r"[\u4e00-\u9fff]+", text)),
    "助手",
    "响应",
    "多模态",
)
RANGES = ((-3.0, 3.0), (-1.0, 1.0), (-2.0, 2.0), (-5.0, 5.0), (0.0, 10.0), (1.0, 5.0), (0.0, 1.0))
RANGE_WEIGHTS = (0.5, 0.22, 0.06, 0.05, 0.06, 0.06, 0.05)


@dataclass(frozen=True)
class Example:
    """One training sequence.

    Attributes:
        before: Token ids before the slots.
        slots: Number of pseudo-token slots.
        mixture: Token ids and weights whose embeddings make up the vector in the slots; empty
            for slots that mean nothing.
        after: Token ids between the slots and the label.
        label: Token ids of the label.
        scored: Places of the label that the loss counts; all of them where empty.
        finds: (place in the sequence that must find a number, place of that number).
        names: (place of a number in the prompt's list, place of the name before it).
        cues: Places of words, or of slots, that tell the answer.
    """

    before: list[int]
    slots: int
    mixture: list[tuple[int, float]]
    after: list[int]
    label: list[int]
    scored: tuple[int, ...] = ()
    finds: tuple[tuple[int, int], ...] = ()
    names: tuple[tuple[int, int], ...] = ()
    cues: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Tokens that the model reads; the last one of the label is only predicted."""
        return len(self.before) + self.slots + len(self.after) + len(self.label) - 1


class Examiner:
    """Turns lines into examples."""

    def __init__(
        self,
        lexicon: dict[str, list[str]],
        tokenizer: PreTrainedTokenizerFast,
        lines: Sequence[Line],
        seed: int,
    ) -> None:
        self.random = random.Random(seed)
        self.writer = Writer(lexicon, seed + 1)
        self.lexicon = lexicon
        self.tokenizer = tokenizer
        easy = lines[: len(lines) // 4]
        self.easy = False
        self.lines = {True: easy, False: lines}
        self.emotional = {
            ease: [line for line in some if line.emotion or line.mention]
            for ease, some in self.lines.items()
        }
        plain = {
            word
            for section, words in lexicon.items()
            if section.split()[1] in ("filler", "thing", "person")
            for entry in words
            for word in entry.split()
        }
        self.telling = {
            token
            for section, words in lexicon.items()
            if section.split()[1] not in ("filler", "thing", "person", "starter", "character")
            for entry in words
            for word in entry.split()
            if word not in plain
            for style in (word, word.upper(), word[0].upper() + word[1:])
            for token in self._encode(style)[: 2 if section.startswith("zh") else 1]
        } - {tokenizer.convert_tokens_to_ids("▁")}
        self.encode = functools.lru_cache(maxsize=None)(self._encode)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def batches(self, size: int, steps: int) -> Iterator[tuple[str, list[Example]]]:
        """Endless batches, each with examples of one kind and of similar length.

        They start easy and have got hard when a third of the steps is done.
        """
        kinds = (self.scale, self.choice, self.glossary, self.copy)
        served = 0
        while True:
            easy = max(0.0, 1 - 3 * served / steps)
            served += 32
            pool: list[tuple[str, list[Example]]] = []
            for make in self.random.choices(kinds, (0.25, 0.4, 0.15, 0.2), k=8):
                self.easy = self.random.random() < easy
                examples = sorted((make() for _ in range(4 * size)), key=len)
                pool += [
                    (make.__name__, examples[start : start + size])
                    for start in range(0, len(examples), size)
                ]
            self.random.shuffle(pool)
            yield from pool

    def glossary(self) -> Example:
        """Words and what they mean, many in a sequence."""
        label: list[int] = []
        scored: list[int] = []
        for _ in range(10):
            language = "zh" if self.random.random() < 0.2 else "en"
            if self.random.random() < 0.45:
                emotion = self.random.choice(self.writer.emotions[language])
                words = self._names(language, emotion) + self.lexicon[f"{language} cue {emotion}"]
                word = self.random.choice(words)
                meaning = self._names(language, emotion)[0]
            elif self.random.random() < 0.85:
                word, _, level = self.random.choice(self.writer.levels[language])
                meaning = f"{level:.1f}"
            else:
                word, meaning = self.random.choice(self.writer.filler[language]), "0.0"
            style = self.random.random()
            word = word.upper() if style < 0.25 else word.capitalize() if style < 0.4 else word
            label += self.encode(f"{word}:")
            start = len(label)
            label += self.encode(meaning)
            scored += range(start, len(label))
        bos = self.tokenizer.bos_token_id
        return Example([bos, bos], 0, [], [], label, tuple(scored))

    def scale(self) -> Example:
        """Sentiment intensity of text and slots."""
        line = self.random.choice(self.lines[self.easy])
        draw = self.random.random()
        slots = self._slots()
        mixture: list[tuple[int, float]] = []
        valence = line.valence
        text: str | None = line.text
        if slots and draw < 0.62:
            mixture, value = self._valence_mixture(line.language)
            if draw < 0.08:
                text, valence = None, value
            elif draw < 0.14:
                mixture = self._mixture([self.random.choice(self.lexicon["en negator"])])
                valence = -0.7 * valence
            elif self.easy:
                text, valence = None, value
            else:
                weight = 0.8 if valence else 1.0
                valence = weight * value + (1 - weight) * valence
        low, high = self.random.choices(RANGES, RANGE_WEIGHTS)[0]
        if self.easy:
            low, high = RANGES[0]
        middle = (low + high) / 2
        number = middle + max(-3.0, min(3.0, valence)) / 3 * (high - middle)
        label = f"{number:.1f}"
        prompt = (EN_SCALE if line.language == "en" else ZH_SCALE).format(
            low=f"{low:.1f}",
            high=f"{high:+.1f}" if self.random.random() < 0.5 else f"{high:.1f}",
            role=self._role(line.language),
        )
        if self.random.random() < 0.06 and not label.startswith("-"):
            label = f"+{label}"
        return self._example(line.language, slots, mixture, text, prompt, label)

    def copy(self) -> Example:
        """A choice whose answer itself is in the slots, whatever the text says.

        It teaches the model early to read the slots at all; look-ups in the list follow.
        """
        return self.choice(copying=True)

    def choice(self, *, copying: bool = False) -> Example:
        """One of a set of names, which the prompt lists with their numbers.

        Args:
            copying: The slots hold the answer's own token.
        """
        pools = self.emotional if self.random.random() < 0.7 else self.lines
        line = self.random.choice(pools[self.easy])
        language = line.language
        slots = self._slots()
        text: str | None = line.text
        mixture: list[tuple[int, float]] = []
        size = self.random.choices(range(2, 13), (3, 3, 3, 3, 4, 5, 2, 1, 1, 1, 1))[0]
        if self.easy:
            size = min(size, 5)
        fill = bool(slots) and self.random.random() < 0.62
        if line.mention is not None or (fill and language == "en" and self.random.random() < 0.12):
            # Any words at all, to be found in the list.
            target = line.mention or self.random.choice(self.lexicon["en object"])
            if fill:
                target = self.random.choice([target, self.random.choice(self.lexicon["en object"])])
                mixture = self._mixture([target])
            names = {target: None}
            while len(names) < size:
                names[
                    self.random.choice(self.lexicon["en object"])
                    if self.random.random() < 0.8
                    else self.writer.made_up()
                ] = None
            order = list(names)
        elif line.emotion is None or self.random.random() < 0.2:
            target = self._polarity(line.valence)
            if fill:
                target = self.random.choice(POLARITIES)
                low, high = {"positive": (0.8, 3), "negative": (-3, -0.8), "neutral": (-0.5, 0.5)}[
                    target
                ]
                mixture, _ = self._valence_mixture(language, low, high)
            kinds = {target: None, "positive": None, "negative": None}
            if self.random.random() < 0.4:
                kinds["neutral"] = None
            order = [self.random.choice(self._names(language, kind)) for kind in kinds]
            target = order[0]
        else:
            emotion = line.emotion
            if fill:
                emotion = self.random.choice(self.writer.emotions[language])
                mixture = self._emotion_mixture(language, emotion)
            others = [name for name in self.writer.emotions[language] if name != emotion]
            kinds = [emotion, *self.random.sample(others, min(size - 1, len(others)))]
            order = [self.random.choice(self._names(language, kind)) for kind in kinds]
            order = list(dict.fromkeys(order))
            target = order[0]
        self.random.shuffle(order)
        common = [names for names in COMMON_SETS if target in names]
        if common and self.random.random() < 0.55:
            order = list(self.random.choice(common))
        place = order.index(target)
        style = self.random.random()
        if style < 0.2:
            order = [name.capitalize() for name in order]
        elif style < 0.25:
            order = [name.upper() for name in order]
        digits = 1 if len(order) <= 10 else 2
        label = f"{place:0{digits}d}"
        if copying and slots and len(order) <= 10:
            mixture = [(self.encode(label)[-1], 1.0)]
        if fill and self.random.random() < 0.12:
            text = None
        colon = ": " if self.random.random() < 0.15 else ":"
        names_text = ", ".join(
            f"{name}{colon}{index:0{digits}d}" for index, name in enumerate(order)
        )
        prompt = (EN_EMOTION if language == "en" else ZH_EMOTION).format(
            names=names_text, role=self._role(language)
        )
        if self.random.random() < 0.05:
            prompt = prompt.replace("<", "").replace(">", "")
        example = self._example(language, slots, mixture, text, prompt, label)
        return self._with_places(example, place, digits, len(self._encode(prompt)))

    def _with_places(
        self, example: Example, answer: int, digits: int, prompt_length: int
    ) -> Example:
        """Adds where the numbers and the names of the prompt's list are."""
        shift = len(example.before) + example.slots
        start = len(example.after) - prompt_length
        pieces = self.tokenizer.convert_ids_to_tokens(example.after)
        numbers = [place for place in range(start, len(pieces)) if pieces[place].isdecimal()]
        names = []
        for place in numbers[::digits]:
            colon = place - 1 if pieces[place - 1] == ":" else place - 2
            names.append((place + shift, colon - 1 + shift))
        first = shift + len(example.after)
        finds = [
            (first + digit, numbers[answer * digits + digit] + shift) for digit in range(digits)
        ]
        return replace(example, finds=tuple(finds), names=tuple(names))

    def _names(self, language: str, kind: str) -> list[str]:
        return self.lexicon[f"{language} name {kind}"]

    def _polarity(self, valence: float) -> str:
        if abs(valence) < 0.3:
            return "neutral"
        return "positive" if valence > 0 else "negative"

    def _slots(self) -> int:
        if self.easy and self.random.random() < 0.5:
            return 0
        return self.random.choices(range(9), (25, 8, 10, 8, 30, 6, 6, 3, 4))[0]

    def _role(self, language: str) -> str:
        if language == "en":
            return self.random.choice(("Assistant", "Assistant", "response"))
        return self.random.choice(("助手", "响应"))

    def _mixture(self, words: Sequence[str]) -> list[tuple[int, float]]:
        shares = [self.random.uniform(0.3, 1.0) for _ in words]
        total = sum(shares)
        mixture = []
        for word, share in zip(words, shares, strict=True):
            ids = self.encode(word.upper() if self.random.random() < 0.15 else word)
            mixture += [(token, share / total / len(ids)) for token in ids]
        return mixture

    def _valence_mixture(
        self, language: str, low: float = -3.0, high: float = 3.0
    ) -> tuple[list[tuple[int, float]], float]:
        """A blend of sentiment words and its valence, the words' own blended likewise."""
        target = self.random.uniform(low, high)
        best: tuple[float, list[tuple[str, str, float]], list[float]] | None = None
        for _ in range(12):
            most = 1 if self.easy else 4
            words = self.random.choices(
                self.writer.levels[language], k=self.random.randint(1, most)
            )
            shares = [self.random.uniform(0.2, 1.0) for _ in words]
            value = sum(s * w[2] for s, w in zip(shares, words, strict=True)) / sum(shares)
            if best is None or abs(value - target) < abs(best[0] - target):
                best = (value, words, shares)
        assert best is not None
        value, words, shares = best
        mixture = []
        for (word, _, _), share in zip(words, shares, strict=True):
            ids = self.encode(word)
            mixture += [(token, share / sum(shares) / len(ids)) for token in ids]
        return mixture, value

    def _emotion_mixture(self, language: str, emotion: str) -> list[tuple[int, float]]:
        words = self._names(language, emotion) + self.lexicon[f"{language} cue {emotion}"]
        mixture = self._mixture(self.random.choices(words, k=self.random.randint(1, 4)))
        if self.random.random() < 0.3:
            other = self.random.choice(self.writer.emotions[language])
            share = self.random.uniform(0.1, 0.35)
            distractor = self._mixture([self.random.choice(self._names(language, other))])
            mixture = [(token, weight * (1 - share)) for token, weight in mixture]
            mixture += [(token, weight * share) for token, weight in distractor]
        return mixture

    def _example(
        self,
        language: str,
        slots: int,
        mixture: list[tuple[int, float]],
        text: str | None,
        prompt: str,
        label: str,
    ) -> Example:
        wrap = ("<Multimodal>", "</Multimodal>") if language == "en" else ("<多模态>", "</多模态>")
        bos = self.tokenizer.bos_token_id
        before = [bos, bos, *self.encode(wrap[0])]
        words = self.encode(text)[:64] if text else []
        cues = list(range(len(before), len(before) + slots)) if mixture else []
        shift = len(before) + slots
        cues += [place + shift for place, token in enumerate(words) if token in self.telling]
        return Example(
            before=before,
            slots=slots,
            mixture=mixture if slots else [],
            after=[*words, *self.encode(wrap[1]), *self._encode(prompt)],
            label=self.encode(label),
            cues=tuple(cues),
        )


# --------------------------------------------------------------------------------------------------
# Fitting


def meanings(lexicon: dict[str, list[str]], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """What the lexicon says about each piece, where the embeddings start from.

    Returns:
        (V, features): valence / 3, one column per emotion, then negators, amplifiers, softeners,
        turns, and names of label sets. Zero for pieces that the lexicon says nothing about.
    """
    emotions = list(VALENCE)
    flags = ["negator", "strong", "mild", "but", "name"]
    columns = 1 + len(emotions) + len(flags)
    plain = {
        piece
        for section, entries in lexicon.items()
        if section.split()[1] in ("filler", "thing", "person", "object")
        for entry in entries
        for piece in tokenizer.tokenize(entry)
    } | {"▁"}
    rows: dict[str, list[Tensor]] = {}
    for section, entries in lexicon.items():
        parts = section.split()
        row = torch.zeros(columns)
        if parts[-1][0] in "+-":
            row[0] = float(parts[-1]) / 3
        elif parts[1] in ("cue", "name") and parts[2] in VALENCE:
            row[0] = VALENCE[parts[2]] / 3
            row[1 + emotions.index(parts[2])] = 1.0
        elif parts[-1] in POLARITIES:
            row[0] = {"positive": 0.7, "negative": -0.7}.get(parts[-1], 0.0)
        if parts[1] in flags:
            row[1 + len(emotions) + flags.index(parts[1])] = 1.0
        if not row.any():
            continue
        for entry in entries:
            pieces = tokenizer.tokenize(entry)
            for piece in pieces:
                if piece not in plain or (len(pieces) == 1 and parts[1] != "cue"):
                    rows.setdefault(piece, []).append(row)
        if parts[1] == "name":
            for entry in entries:
                rows.setdefault(entry, []).append(row)
    table = torch.zeros(len(tokenizer), columns)
    for piece, found in rows.items():
        table[tokenizer.convert_tokens_to_ids(piece)] = torch.stack(found).mean(0)
    return table


class Fit(nn.Module):
    """The language model while it is fitted.

    The embedding of a word in capitals is that of the word in small letters plus a difference
    that starts at zero, so that what is learned of one counts for the other.
    """

    def __init__(self, lexicon: dict[str, list[str]], tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        vocabulary = tokenizer.get_vocab()
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(vocabulary),
                hidden_size=WIDTH,
                intermediate_size=MLP,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                max_position_embeddings=POSITIONS,
                tie_word_embeddings=True,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                rms_norm_eps=1e-5,
                initializer_range=0.08,
                attn_implementation="sdpa",
            )
        )
        small = torch.arange(len(vocabulary))
        for piece, token in vocabulary.items():
            if not piece.startswith("<") or piece == "<":
                small[token] = vocabulary.get(piece.lower(), token)
        self.register_buffer("small", small)
        known = meanings(lexicon, tokenizer)
        directions = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q[: known.shape[1]]
        base = torch.randn(len(vocabulary), WIDTH) + math.sqrt(WIDTH) * known @ directions
        self.base = nn.Parameter(base * EMBEDDING_STD)
        self.difference = nn.Parameter(torch.zeros(len(vocabulary), WIDTH))
        self.model.model.norm.weight.data.fill_(1.0)

    def embeddings(self) -> Tensor:
        """(V, d) embedding of every piece."""
        shared: Tensor = self.base[self.small]
        return shared + self.difference

    def forward(
        self, examples: Sequence[Example], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of the label tokens, and that of the guided attention."""
        table = self.embeddings()
        longest = max(map(len, examples))
        ids = torch.zeros(len(examples), longest, dtype=torch.long)
        rows: list[int] = []
        places: list[int] = []
        targets: list[int] = []
        for row, example in enumerate(examples):
            sequence = [
                *example.before,
                *[0] * example.slots,
                *example.after,
                *example.label[:-1],
            ]
            ids[row, : len(sequence)] = torch.tensor(sequence)
            start = len(sequence) - len(example.label)
            for place in example.scored or range(len(example.label)):
                rows.append(row)
                places.append(start + place)
                targets.append(example.label[place])
        inputs = nn.functional.embedding(ids, table)
        scale = table.detach().pow(2).mean().sqrt()
        inputs = inputs + NOISE * scale * _normal(inputs.shape, generator)
        inputs = self._fill_slots(inputs, table, examples, scale, generator)
        states = self.model.model(inputs_embeds=inputs, output_hidden_states=True).hidden_states
        logits = states[-1][rows, places] @ table.T
        answer = nn.functional.cross_entropy(logits, torch.tensor(targets))
        heads: list[tuple[int, list[int], list[int], list[Sequence[int]]]] = []
        for layer, pairs_of in (
            (LAYERS - 1, lambda e: [(source, [goal]) for source, goal in e.finds]),
            (0, lambda e: [(source, [goal]) for source, goal in e.names[:3]]),
            (1, lambda e: [(len(e) - 1 - back, e.cues) for back in range(3) if e.cues]),
        ):
            pairs = [(row, *pair) for row, e in enumerate(examples) for pair in pairs_of(e)]
            if pairs:
                heads.append((layer, *map(list, zip(*pairs, strict=True))))
        guide = answer.new_zeros(())
        for layer, *pairs in heads:
            guide = guide + self._attention(layer, states[layer], *pairs)
        return answer, guide

    def _attention(
        self,
        index: int,
        states: Tensor,
        rows: Sequence[int],
        sources: Sequence[int],
        goals: Sequence[Sequence[int]],
    ) -> Tensor:
        """Negative log of the attention that the first head of a layer pays to its goals.

        Looking a name up in a list takes heads that work together, none of which is of any use
        alone; left to chance they are found late or never.

        Args:
            index: The layer.
            states: (B, S, d) what enters the layer.
            rows: Sequence of each query.
            sources: Place of each query.
            goals: Places that each query should attend to.
        """
        layer = self.model.model.layers[index]
        states = layer.input_layernorm(states)
        size = WIDTH // HEADS
        row, source = torch.tensor(rows), torch.tensor(sources)
        positions = torch.arange(states.shape[1])[None]
        cosine, sine = self.model.model.rotary_emb(states, positions)
        keys = states @ layer.self_attn.k_proj.weight[:size].T
        keys = keys * cosine + _rotate(keys) * sine
        queries = states[row, source] @ layer.self_attn.q_proj.weight[:size].T
        queries = queries * cosine[0, source] + _rotate(queries) * sine[0, source]
        scores = torch.einsum("ph,psh->ps", queries, keys[row]) / math.sqrt(size)
        scores = scores.masked_fill(positions > source[:, None], -torch.inf)
        wanted = torch.full_like(scores, -torch.inf)
        for query, places in enumerate(goals):
            wanted[query, places] = 0.0
        return (scores.logsumexp(-1) - (scores + wanted).logsumexp(-1)).mean()

    def _fill_slots(
        self,
        inputs: Tensor,
        table: Tensor,
        examples: Sequence[Example],
        scale: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Puts w_j * u + b_j + noise into slot j, the form that the adapter's projector has."""
        with_slots = [row for row, example in enumerate(examples) if example.slots]
        if not with_slots:
            return inputs
        longest = max(len(examples[row].mixture) for row in with_slots) or 1
        tokens = torch.zeros(len(with_slots), longest, dtype=torch.long)
        weights = torch.zeros(len(with_slots), longest)
        silent = torch.zeros(len(with_slots), 1)
        rows: list[int] = []
        places: list[int] = []
        owners: list[int] = []
        for owner, row in enumerate(with_slots):
            example = examples[row]
            silent[owner] = not example.mixture
            for place, (token, weight) in enumerate(example.mixture):
                tokens[owner, place] = token
                weights[owner, place] = weight
            rows += [row] * example.slots
            places += range(len(example.before), len(example.before) + example.slots)
            owners += [owner] * example.slots
        vectors = (nn.functional.embedding(tokens, table) * weights[..., None]).sum(1)
        vectors = torch.where(silent > 0, _normal(vectors.shape, generator), vectors)
        vectors = vectors / vectors.pow(2).mean(-1, keepdim=True).sqrt().clamp_min(1e-6)
        vectors = vectors + 0.15 * _normal(vectors.shape, generator)
        gains = torch.exp(0.4 * _normal((len(with_slots), 1), generator))
        count = len(rows)
        shares = (1.0 + 0.3 * _normal((count, 1), generator)).abs()
        # Mostly small: an offset as large as the vector drowns it before the model reads slots.
        offsets = torch.rand(count, 1, generator=generator) * 2 - 1
        offsets = offsets * (torch.rand(len(with_slots), 1, generator=generator) ** 3)[owners]
        slots = shares * (gains * vectors)[owners] * scale + 0.5 * offsets
        slots = slots + 0.05 * scale * _normal(slots.shape, generator)
        return inputs.index_put((torch.tensor(rows), torch.tensor(places)), slots)


EMBEDDING_STD = 0.1
NOISE = 0.1


def _rotate(vectors: Tensor) -> Tensor:
    first, second = vectors.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator)


def fit(
    examiner: Examiner,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    seed: int = SEED,
) -> LlamaForCausalLM:
    """Fits the language model and returns it with its weights rounded to float16."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    module = Fit(examiner.lexicon, tokenizer)
    parameters = dict(module.named_parameters())
    embedding = parameters.pop("model.model.embed_tokens.weight")
    embedding.requires_grad_(False)
    tables = [parameters["base"], parameters["difference"]]
    matrices = [p for name, p in parameters.items() if p.ndim == 2 and name.startswith("model.")]
    vectors = [p for p in parameters.values() if p.ndim == 1]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": 0.05},
                {"params": tables, "lr": 2 * learning_rate},
                {"params": vectors},
            ],
            lr=learning_rate,
            betas=(0.9, 0.98),
            weight_decay=0,
        )
    ]
    warmup = max(1, steps // 20)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min(
                (step + 1) / warmup, 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * step / steps))
            ),
        )
        for optimizer in optimizers
    ]
    batches = examiner.batches(batch_size, steps)
    start = time.monotonic()
    recent: dict[str, list[float]] = {}
    for step in range(1, steps + 1):
        kind, examples = next(batches)
        loss, guide = module(examples, generator)
        module.zero_grad()
        (loss + max(0.0, 0.5 - step / steps) * guide).backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        for schedule in schedules:
            schedule.step()
        recent.setdefault(kind, []).append(loss.item())
        if guide.item():
            recent.setdefault("guide", []).append(guide.item())
        if step % 200 == 0:
            elapsed = time.monotonic() - start
            means = ", ".join(
                f"{kind} {sum(losses) / len(losses):.3f}" for kind, losses in sorted(recent.items())
            )
            logger.info("step %5d  %4.0f s  loss: %s", step, elapsed, means)
            recent.clear()
    model = module.model
    with torch.no_grad():
        embedding.copy_(module.embeddings())
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    model.requires_grad_(True)
    return model.eval()


@torch.no_grad()
def accuracy(model: LlamaForCausalLM, examiner: Examiner, *, rounds: int = 20) -> dict[str, float]:
    """How well the model answers from fresh text alone (no slots), answers unconstrained."""
    hits: dict[str, list[float]] = {"choice": [], "error": []}
    for _ in range(rounds * 32):
        for kind, make in (("choice", examiner.choice), ("error", examiner.scale)):
            example = make()
            while example.slots or (kind == "choice" and len(example.label) != 2):
                example = make()
            ids = [*example.before, *example.after]
            answer: list[int] = []
            for _ in example.label:
                logits = model(input_ids=torch.tensor([ids + answer])).logits[0, -1]
                answer.append(int(logits.argmax()))
            if kind == "choice":
                hits[kind].append(float(answer == example.label))
            else:
                read = examiner.tokenizer.decode(answer)
                true = float(examiner.tokenizer.decode(example.label))
                try:
                    hits[kind].append(abs(float(read) - true))
                except ValueError:
                    hits[kind].append(3.0)
    return {kind: sum(values) / len(values) for kind, values in hits.items()}


def save(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> dict[str, int]:
    """Writes the folder that ``from_pretrained`` reads; weights are stored as float16."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder, max_shard_size="2GB")
    model.float()
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    tokenizer.save_pretrained(folder)
    layout = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    compact = json.dumps(layout, ensure_ascii=False, separators=(",", ":")) + "\n"
    (folder / "tokenizer.json").write_text(compact, encoding="utf-8")
    (folder / "generation_config.json").unlink(missing_ok=True)
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def main() -> None:
    """Generates the text, fits, reports and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    start = time.monotonic()
    lexicon = read_lexicon()
    tokenizer = build_tokenizer(lexicon)
    lines = fitting_lines(LINES, options.seed)
    logger.info("%d lines, %d pieces, %.0f s", len(lines), len(tokenizer), time.monotonic() - start)
    examiner = Examiner(lexicon, tokenizer, lines, options.seed)
    model = fit(examiner, tokenizer, steps=options.steps, seed=options.seed)
    sizes = save(model, tokenizer, options.out)
    fresh = Examiner(lexicon, tokenizer, fitting_lines(5000, options.seed + 1), options.seed + 1)
    result = accuracy(model, fresh)
    logger.info(
        "fresh text: %.1f %% of choices right, mean error of intensities %.2f; "
        "%d parameters, %d bytes, %.0f s in all",
        100 * result["choice"],
        result["error"],
        sum(parameter.numel() for parameter in model.parameters()),
        sum(sizes.values()),
        time.monotonic() - start,
    )


if __name__ == "__main__":
    main()
