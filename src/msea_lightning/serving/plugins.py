"""Several plugins, loaded by the names under which people ask for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from msea_lightning.backbone.options import Accelerator
from msea_lightning.data.options import LabelKind
from msea_lightning.plugin import Plugin, Predictor, load_plugin_backbone
from msea_lightning.plugin.facts import PluginFacts
from msea_lightning.plugin.options import RecordedBackboneConfig


def load_plugins(
    places: Sequence[str], language_model: RecordedBackboneConfig
) -> dict[str, Predictor]:
    """Loads plugins; those of the same language model share it.

    Args:
        places: Plugin folders, or names on the Hugging Face Hub.
        language_model: Where the language model is and how it is stored, for all of them.

    Returns:
        A name for each plugin, such as ``mosei`` or ``demo (emotions)``, to the predictor that it
        is attached to under this name.

    Raises:
        PluginError: if a plugin cannot be read, or was trained on another language model.
    """
    plugins = [Plugin.from_pretrained(place) for place in places]
    names = _names([plugin.facts for plugin in plugins])
    loaded: dict[str, Predictor] = {}
    for name, plugin in zip(names, plugins, strict=True):
        shared = (
            predictor
            for other, predictor in zip(plugins, loaded.values(), strict=False)
            if _language_model(other.facts) == _language_model(plugin.facts)
        )
        predictor = next(shared, None) or _predictor(plugin, language_model)
        predictor.add(plugin, name)
        loaded[name] = predictor
    return loaded


def _predictor(plugin: Plugin, options: RecordedBackboneConfig) -> Predictor:
    return Predictor(
        load_plugin_backbone(
            plugin,
            options.path,
            tokenizer=options.tokenizer,
            quantization=None if options.quantization is None else options.quantization.value,
            dtype=options.dtype,
            device="auto" if options.accelerator is Accelerator.auto else options.accelerator.value,
        )
    )


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
