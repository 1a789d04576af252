"""Several plugins, loaded by the names under which people ask for them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

from msea_lightning.data.options import LabelKind
from msea_lightning.plugin import Plugin, Predictor
from msea_lightning.plugin.facts import PluginFacts
from msea_lightning.plugin.loading import load_recorded_backbone
from msea_lightning.plugin.options import RecordedBackboneConfig

_log = logging.getLogger(__name__)


def open_plugins(places: Sequence[str], named: Mapping[str, str]) -> dict[str, Plugin]:
    """Reads plugins.

    Args:
        places: Plugin folders, or names on the Hugging Face Hub. They are called by their data set,
            such as ``mosei``, or ``demo (emotions)`` and ``demo 1`` where that is not unique.
        named: The same by the names that they shall have.

    Raises:
        PluginError: if a plugin cannot be read.
    """
    plugins = [Plugin.from_pretrained(place) for place in (*places, *named.values())]
    names = _names([plugin.facts for plugin in plugins[: len(places)]])
    found = dict(zip((*names, *named), plugins, strict=True))
    for name, plugin in found.items():
        if note := about_context(plugin.facts):
            _log.info("%s: %s", name, note)
    return found


def about_context(facts: PluginFacts) -> str:
    """That a plugin has learned from conversations; empty of one that has not."""
    number = facts.prompt.context
    if not number:
        return ""
    before = "the utterance" if number == 1 else f"up to {number} utterances"
    return (
        f"The plugin was trained with {before} before each of a conversation; here each is "
        "answered alone"
    )


def load_together(
    plugins: Mapping[str, Plugin], language_model: RecordedBackboneConfig, *, embeddings_only: bool
) -> Predictor:
    """Loads one language model, that of the first plugin, and attaches all plugins to it.

    Args:
        plugins: By name.
        language_model: Where it is, and how it is stored.
        embeddings_only: Keep nothing of it but its embeddings.

    Raises:
        PluginError: if a plugin belongs to another language model.
        BackboneError: if the language model cannot be loaded.
    """
    first = next(iter(plugins.values()))
    predictor = Predictor(
        load_recorded_backbone(
            first.facts, **language_model.arguments(), embeddings_only=embeddings_only
        )
    )
    for name, plugin in plugins.items():
        predictor.add(plugin, name)
    return predictor


def load_plugins(
    plugins: Mapping[str, Plugin], language_model: RecordedBackboneConfig
) -> dict[str, Predictor]:
    """Loads the language models of plugins; those of the same one share it.

    Args:
        plugins: By name.
        language_model: Where it is and how it is stored, for all of them.

    Returns:
        The name of each plugin to the predictor that it is attached to under this name.

    Raises:
        PluginError: if a plugin was trained on another language model.
    """
    loaded: dict[str, Predictor] = {}
    for name, plugin in plugins.items():
        shared = (
            predictor
            for other, predictor in zip(plugins.values(), loaded.values(), strict=False)
            if _language_model(other.facts) == _language_model(plugin.facts)
        )
        predictor = next(shared, None)
        if predictor is None:
            found = load_recorded_backbone(plugin.facts, **language_model.arguments())
            predictor = Predictor(found)
        predictor.add(plugin, name)
        loaded[name] = predictor
    return loaded


def _language_model(facts: PluginFacts) -> tuple[object, ...]:
    """What two plugins of one language model have in common."""
    return facts.backbone, facts.fingerprint, facts.prompt.pad_token


def _names(all_facts: Sequence[PluginFacts]) -> list[str]:
    """The data set of each, with the kind of labels and then a number where that is not unique."""
    names = [facts.dataset for facts in all_facts]
    if len(set(names)) < len(names):
        kinds = {LabelKind.scale: "sentiment", LabelKind.emotions: "emotions"}
        names = [f"{facts.dataset} ({kinds[facts.labels.kind]})" for facts in all_facts]
    total, seen = Counter(names), Counter[str]()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(f"{name} {seen[name]}" if total[name] > 1 else name)
    return numbered
