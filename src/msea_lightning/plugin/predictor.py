"""Trained plugins in front of one language model, ready to answer."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import nn

from msea_lightning.backbone import BackboneError, FrozenBackbone
from msea_lightning.data.context import Said, said_before, token_arrays
from msea_lightning.data.utterance import Utterance
from msea_lightning.language.encoding import ContextEncoder
from msea_lightning.language.options import Decode
from msea_lightning.model.adapted_lm import AdaptedLM, predict_together
from msea_lightning.plugin.answer import Answer, answers_of
from msea_lightning.plugin.attaching import attach
from msea_lightning.plugin.batching import Question, batches, check, collate
from msea_lightning.plugin.facts import PluginError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from msea_lightning.features.extraction import Extraction
    from msea_lightning.plugin.plugin import Plugin


class _Attached:
    """A plugin in front of the language model."""

    def __init__(self, name: str, plugin: Plugin, model: AdaptedLM) -> None:
        self.name = name
        self.plugin = plugin
        self.model = model
        self.facts = plugin.facts
        self._extraction: Extraction | None = None

    @property
    def extraction(self) -> Extraction:
        """What extracts features as in training; PluginError where that is not known."""
        if self._extraction is None:
            from msea_lightning.features.extraction import Extraction

            if not self.facts.features:
                raise PluginError(
                    "The plugin does not say what its features were extracted with, so none can "
                    "be extracted from a clip. Give the features (audio=, vision=) as for "
                    f"{self.facts.dataset}, or train on features of msea_lightning.extract."
                )
            self._extraction = Extraction.from_facts(self.facts.features)
        return self._extraction


class Predictor:
    """Answers about utterances, by one or several plugins in front of one language model.

    The language model is shared: a plugin more costs its own weights. Threads may share a
    predictor, also while plugins are added and removed.

    Args:
        model: A causal language model of transformers, or a frozen one of ours. It is left without
            hooks or patches; see :meth:`detach`.
        tokenizer: Its tokenizer; not for a frozen one, which has its own.
        pad_token: Token that fills up sequences; the tokenizer's own where not given.

    Raises:
        BackboneError: if the model cannot be a backbone, or its tokenizer is missing.
    """

    def __init__(
        self,
        model: PreTrainedModel | FrozenBackbone,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        pad_token: str | None = None,
    ) -> None:
        if isinstance(model, FrozenBackbone):
            if tokenizer is not None:
                raise BackboneError("A FrozenBackbone has its own tokenizer: leave tokenizer out.")
            self.backbone = model
        elif isinstance(model, nn.Module):
            if tokenizer is None:
                raise BackboneError(
                    "A language model of transformers needs its tokenizer beside it: "
                    "attach(model, tokenizer)."
                )
            _borrow(model, self)
            try:
                self.backbone = FrozenBackbone(model, tokenizer, pad_token=pad_token)
            except BaseException:
                _give_back(model, self)
                raise
        else:
            raise BackboneError(
                f"A loaded language model of transformers is expected, not {model!r}: load it "
                "first, or use Plugin.load."
            )
        self._fingerprint = self.backbone.fingerprint()
        self._attached: Mapping[str, _Attached] = {}
        self._is_detached = False
        self._lock = threading.Lock()

    @property
    def plugins(self) -> dict[str, Plugin]:
        """The attached plugins by name, in the order in which they were added."""
        return {name: attached.plugin for name, attached in self._attached.items()}

    def add(self, plugin: Plugin, name: str | None = None) -> str:
        """Attaches one more plugin.

        Args:
            plugin: The plugin.
            name: What to call it; the name of its data set where not given.

        Returns:
            Its name.

        Raises:
            PluginError: if there is one of that name, or it was trained on another language model.
        """
        name = name or plugin.facts.dataset
        model = attach(plugin, self.backbone, fingerprint=self._fingerprint)
        with self._lock:
            if self._is_detached:
                raise PluginError("The predictor is detached: make a new one.")
            if name in self._attached:
                raise PluginError(
                    f"There is a plugin {name!r} already: add this one under another name "
                    "(name=...)."
                )
            self._attached = {**self._attached, name: _Attached(name, plugin, model)}
        return name

    def remove(self, name: str) -> None:
        """Takes a plugin away; PluginError if there is none of that name."""
        with self._lock:
            self._find(name)
            self._attached = {
                other: attached for other, attached in self._attached.items() if other != name
            }

    def detach(self) -> None:
        """Takes all plugins away for good; a language model is set back to what it was.

        Where several predictors share a language model, the last one that is detached does that.
        """
        with self._lock:
            self._attached = {}
            self._is_detached = True
        _give_back(self.backbone.model, self)

    def predict(
        self,
        utterances: Sequence[Utterance],
        *,
        plugin: str | Sequence[str] | None = None,
        decode: Decode | str | None = None,
        batch_size: int | None = None,
        before: Sequence[Sequence[Utterance]] | None = None,
    ) -> list[Answer]:
        """The answers about utterances, in their order.

        Args:
            utterances: Any mix of lengths and absent modalities. Features of those with a clip are
                extracted from it, unless they are given. Those of one ``group`` are a conversation,
                in the order in which they were said: a plugin that was trained with context
                (``prompt.context``) reads the last ones before each.
            plugin: Name of the plugin to ask, or one for each utterance; not needed where there is
                only one.
            decode: ``greedy``, ``median`` or ``mean``; each plugin's own rule where not given.
            batch_size: Most utterances at a time; as in the test of the run where not given.
            before: For each what was said before it, the earliest first, instead of what its group
                says; their features are not read.

        Raises:
            PluginError: if there is no such plugin.
            DataError: if an utterance does not fit the plugin.
            LabelSpaceError: if emotions shall be decoded by ``median`` or ``mean``.
        """
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise PluginError(f"batch_size is {batch_size!r}: give a whole number of at least 1.")
        utterances = list(utterances)
        asked = self._asked(plugin, len(utterances))
        rule = _rule(decode)
        complete = [
            self._with_features(utterance, attached)
            for utterance, attached in zip(utterances, asked, strict=True)
        ]
        for utterance, attached in zip(complete, asked, strict=True):
            check(utterance, attached.model)
        lengths = [
            {name: len(frames) for name, frames in utterance.features.items()}
            for utterance in complete
        ]
        size = batch_size or max((attached.facts.eval_batch_size for attached in asked), default=1)
        answers: list[Answer | None] = [None] * len(utterances)
        for batch in batches(self._questions(complete, asked, lengths, before), size):
            for question, answer in zip(*self._answer(batch, rule), strict=True):
                answers[question.number] = answer
        return [answer for answer in answers if answer is not None]

    def explain(
        self,
        utterance: Utterance,
        *,
        plugin: str | None = None,
        decode: Decode | str | None = None,
        before: Sequence[Utterance] = (),
    ) -> dict[str, Answer]:
        """What each modality contributes: the answer without it.

        Args:
            utterance: The utterance.
            plugin: As in :meth:`predict`.
            decode: As in :meth:`predict`.
            before: What was said before it, which stays in all answers.

        Returns:
            ``everything`` to the answer about the whole utterance, and ``without text``,
            ``without audio`` and ``without vision`` to the answer where that is absent, for each
            that the utterance has besides others.
        """
        name = self._names(plugin, 1)[0]
        whole = self._with_features(utterance, self._find(name))
        cases = {"everything": whole}
        parts = [*(["text"] if whole.text.strip() else []), *sorted(whole.features)]
        for part in parts if len(parts) > 1 else []:
            rest = {key: frames for key, frames in whole.features.items() if key != part}
            text = "" if part == "text" else whole.text
            cases[f"without {part}"] = replace(whole, text=text, features=rest)
        found = self.predict(
            list(cases.values()), plugin=name, decode=decode, before=[before] * len(cases)
        )
        return dict(zip(cases, found, strict=True))

    def extraction(self, plugin: str | None = None) -> Extraction:
        """What extracts a plugin's features from clips; PluginError where that is not known."""
        return self._find(self._names(plugin, 1)[0]).extraction

    @property
    def models(self) -> dict[str, AdaptedLM]:
        """The attached plugins by name, as the models that answer batches."""
        return {name: attached.model for name, attached in self._attached.items()}

    def complete(self, utterance: Utterance, *, plugin: str | None = None) -> Utterance:
        """The utterance with the features of its clip, if :meth:`predict` would answer it.

        Raises:
            PluginError: if there is no such plugin.
            DataError: if the utterance does not fit it.
            MediaError: if the clip cannot be read.
        """
        attached = self._find(self._names(plugin, 1)[0])
        whole = self._with_features(utterance, attached)
        check(whole, attached.model)
        return whole

    def questions(
        self, utterances: Sequence[Utterance], *, plugin: str | Sequence[str] | None = None
    ) -> list[Question]:
        """Complete utterances, each with its plugin's model and the token ids of its text."""
        asked = self._asked(plugin, len(utterances))
        lengths = [{name: len(found) for name, found in u.features.items()} for u in utterances]
        return self._questions(utterances, asked, lengths)

    def check(self, utterance: Utterance, *, plugin: str | None = None) -> None:
        """Refuses an utterance that :meth:`predict` would refuse, its features at hand.

        Raises:
            PluginError: if there is no such plugin.
            DataError: if the utterance does not fit it.
        """
        check(utterance, self._find(self._names(plugin, 1)[0]).model)

    def plan(
        self,
        utterances: Sequence[Utterance],
        lengths: Sequence[Mapping[str, int]],
        *,
        plugin: str | None = None,
        batch_size: int | None = None,
        before: Sequence[Sequence[Utterance]] | None = None,
    ) -> list[list[int]]:
        """The batches in which :meth:`predict` answers, without the features at hand.

        Args:
            utterances: Features are not looked at.
            lengths: Name of each feature of each utterance to its number of frames.
            plugin: As in :meth:`predict`.
            batch_size: As in :meth:`predict`.
            before: As in :meth:`predict`.

        Returns:
            Positions of the utterances in each batch. To ask about those of a batch alone gives
            the same answers to the last digit, with what was said before them.
        """
        asked = self._asked(plugin, len(utterances))
        size = batch_size or (asked[0].facts.eval_batch_size if asked else 1)
        questions = self._questions(utterances, asked, lengths, before)
        return [[question.number for question in batch] for batch in batches(questions, size)]

    def _questions(
        self,
        utterances: Sequence[Utterance],
        asked: Sequence[_Attached],
        lengths: Sequence[Mapping[str, int]],
        before: Sequence[Sequence[Utterance]] | None = None,
    ) -> list[Question]:
        if before is not None and len(before) != len(utterances):
            raise PluginError(
                f"before has what was said before {len(before)} utterances, but there are "
                f"{len(utterances)}: give it for each."
            )
        found: dict[int, Question] = {}
        for attached in dict.fromkeys(asked):  # each writes texts in its own way
            numbers = [number for number, one in enumerate(asked) if one is attached]
            own = [utterances[number] for number in numbers]
            said = None if before is None else [before[number] for number in numbers]
            tokens, contexts = self._tokens(attached.model, own, said)
            for number, utterance, text, context in zip(
                numbers, own, tokens, contexts, strict=True
            ):
                found[number] = Question(
                    number, attached.model, attached.name, utterance, text, lengths[number], context
                )
        return [found[number] for number in range(len(utterances))]

    def _tokens(
        self,
        model: AdaptedLM,
        utterances: Sequence[Utterance],
        before: Sequence[Sequence[Utterance]] | None,
    ) -> tuple[list[NDArray[np.int32]], list[NDArray[np.int32]]]:
        """Token ids of N texts, and of what a plugin reads before each."""
        encoder = ContextEncoder(self.backbone.tokenizer, model.prompt.wording)
        contexts: Sequence[Sequence[int]] = [[]] * len(utterances)
        with self._lock:  # tokenizers are not safe to share
            tokens = encoder.texts([utterance.text for utterance in utterances])
            if model.prompt.most_context:
                said = [Said(one.text, one.speaker) for one in utterances]
                contexts = encoder(said, _before(utterances, said, encoder.number, before))
        return token_arrays(tokens), token_arrays(contexts)

    def _with_features(self, utterance: Utterance, attached: _Attached) -> Utterance:
        """The utterance with the features of its clip, besides those that it has."""
        clip = utterance.clip
        if clip is None:
            return utterance
        found = attached.extraction.extract(clip.path, clip.start, clip.end)
        return replace(utterance, features={**found, **utterance.features}, clip=None)

    def _answer(
        self, batch: Sequence[Question], rule: Decode | None
    ) -> tuple[list[Question], list[Answer]]:
        """A batch's questions, those of a plugin together, and their answers."""
        groups: dict[str, list[Question]] = {}
        for question in batch:
            groups.setdefault(question.name, []).append(question)
        parts = [
            (group[0].model, collate(group).to(self.backbone.device)) for group in groups.values()
        ]
        if len(parts) == 1:
            [(model, only)] = parts
            found = [model.predict(only, rule)]
        else:
            found = predict_together(parts, [rule or model.rule for model, _ in parts])
        answers = [
            answer
            for (name, group), some in zip(groups.items(), found, strict=True)
            for answer in answers_of(
                [q.utterance.id for q in group], name, group[0].model.space, some
            )
        ]
        return [question for group in groups.values() for question in group], answers

    def _names(self, plugin: str | Sequence[str] | None, count: int) -> list[str]:
        """A plugin's name for each of so many utterances."""
        if plugin is None:
            if len(self._attached) != 1:
                raise PluginError(f"Say which plugin to ask (plugin=...): {self._listed()}.")
            return [next(iter(self._attached))] * count
        names = [plugin] * count if isinstance(plugin, str) else list(plugin)
        if len(names) != count:
            raise PluginError(
                f"plugin has {len(names)} names for {count} utterances: give one, or one for each."
            )
        return names

    def _asked(self, plugin: str | Sequence[str] | None, count: int) -> list[_Attached]:
        """The plugin that each of so many utterances is for, as it is now."""
        names = self._names(plugin, count)
        found = {name: self._find(name) for name in dict.fromkeys(names)}
        return [found[name] for name in names]

    def _find(self, name: str) -> _Attached:
        if name not in self._attached:
            raise PluginError(f"There is no plugin {name!r}: {self._listed()}.")
        return self._attached[name]

    def _listed(self) -> str:
        return (
            f"attached are {', '.join(map(repr, self._attached))}"
            if self._attached
            else "none is attached"
        )


def _before(
    utterances: Sequence[Utterance],
    said: Sequence[Said],
    number: int,
    given: Sequence[Sequence[Utterance]] | None,
) -> list[tuple[Said, ...]]:
    """The last words before each utterance: those that are given, else those of its group."""
    if given is None:
        groups = [utterance.group for utterance in utterances]
        return said_before(zip(groups, said, strict=True), number)
    spoken = ([one for one in last if one.text.strip()] for last in given)
    return [tuple(Said(one.text, one.speaker) for one in last[-number:]) for last in spoken]


def _rule(decode: Decode | str | None) -> Decode | None:
    try:
        return None if decode is None else Decode(decode)
    except ValueError:
        known = ", ".join(rule.value for rule in Decode)
        raise PluginError(f"decode is {decode!r}: give one of {known}.") from None


class _Loan:
    """A language model of somebody else: who uses it, and what freezing it changed.

    It holds no reference to the model, which is the key it is found by.
    """

    def __init__(self, model: nn.Module) -> None:
        self.users: weakref.WeakSet[Predictor] = weakref.WeakSet()
        self._training = {name: module.training for name, module in model.named_modules()}
        self._gradients = {name: weight.requires_grad for name, weight in model.named_parameters()}

    def restore(self, model: nn.Module) -> None:
        for name, module in model.named_modules():
            module.training = self._training.get(name, module.training)
        for name, weight in model.named_parameters():
            weight.requires_grad_(self._gradients.get(name, weight.requires_grad))


_loans: weakref.WeakKeyDictionary[nn.Module, _Loan] = weakref.WeakKeyDictionary()
_loans_lock = threading.Lock()


def _borrow(model: nn.Module, user: Predictor) -> None:
    """Notes how a language model is before it is frozen, unless it is in use already."""
    with _loans_lock:
        loan = _loans.get(model)
        if loan is None or not loan.users:
            _loans[model] = loan = _Loan(model)
        loan.users.add(user)


def _give_back(model: nn.Module, user: Predictor) -> None:
    """Sets a language model back where its last user gives it back."""
    with _loans_lock:
        loan = _loans.get(model)
        if loan is None or user not in loan.users:
            return
        loan.users.remove(user)
        if not loan.users:
            loan.restore(model)
            del _loans[model]
