"""The model card of a plugin: ``README.md``, front matter of the Hugging Face Hub and text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from importlib import resources

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from jinja2 import Environment, StrictUndefined

from msea_lightning.adapter.options import ADAPTERS
from msea_lightning.backbone.options import Weights
from msea_lightning.config.text import visible
from msea_lightning.data.options import LabelKind
from msea_lightning.data.resolve import describe_labels
from msea_lightning.metrics import METRICS
from msea_lightning.plugin.facts import PluginError, PluginFacts, backbone_title, is_local

LIBRARY = "msea_lightning"

_HUB_METRICS = {"mae": "mae", "corr": "pearsonr", "f1": "f1", "f1_non0": "f1", "wf1": "f1"}
"""Names of metrics on the Hub, where they differ from those of ours that are accuracies."""


def model_card(facts: PluginFacts, parameters: int, name: str | None = None) -> ModelCard:
    """The card of a plugin with so many parameters, and of a Hub name where it has one."""
    front = _front_matter(facts, name).to_yaml()
    return ModelCard(visible(f"---\n{front}\n---\n\n{_text(facts, parameters, name)}"))


def escaped(text: str) -> str:
    """Text of data as it is, in Markdown."""
    flat = " ".join(visible(text).split())
    return re.sub(r"([\\`*_\[\]<>|~&$])", r"\\\1", flat)


def check_front_matter(license: str | None, language: str | None) -> None:
    """Refuses what the Hub would: a licence or a language that is no identifier."""
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", str(license)):
        raise PluginError(
            f"license={license!r} is no identifier of a licence: give one of "
            "https://huggingface.co/docs/hub/repositories-licenses, such as cc-by-nc-4.0, or other."
        )
    if language is not None and not re.fullmatch(r"[a-z]{2,3}", str(language)):
        raise PluginError(
            f"language={language!r} is no ISO 639 code: give two or three letters, such as en."
        )


def _front_matter(facts: PluginFacts, name: str | None) -> ModelCardData:
    """What the Hub sorts and links plugins by; what is not known is left out."""
    base, data = _base_model(facts), _hub_name(facts.dataset_id)
    results = _results(facts)
    return ModelCardData(
        library_name=LIBRARY,
        pipeline_tag=_task(facts),
        base_model=base,
        base_model_relation="adapter" if base else None,
        base_model_revision=facts.backbone.get("revision") if base else None,
        datasets=[data] if data else None,
        language=facts.language,
        license=facts.license,
        tags=["multimodal", _kind(facts).replace(" ", "-"), f"{facts.adapter_name}-adapter"],
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=(name or _title(facts)).rpartition("/")[2] if results else None,
        eval_results=results or None,
    )


def _task(facts: PluginFacts) -> str:
    """The task of the Hub's list that comes nearest.

    There is none of several modalities with a label as the answer. All plugins answer to a text
    alone, as in text classification, but those that read none.
    """
    if facts.adapter.get("use_text", True):
        return "text-classification"
    return "video-classification" if "vision" in _read(facts) else "audio-classification"


def _kind(facts: PluginFacts) -> str:
    emotions = facts.labels.kind is LabelKind.emotions
    return "emotion recognition" if emotions else "sentiment analysis"


def _title(facts: PluginFacts) -> str:
    return f"{facts.dataset}-{facts.adapter_name}-{facts.backbone.get('name')}"


def _results(facts: PluginFacts) -> list[EvalResult]:
    """The test metrics, under their names on the Hub and ours; undefined ones are left out."""
    seed = "" if facts.seed is None else f", seed {facts.seed}"
    found = []
    for name, value in facts.test.items():
        if name not in METRICS or value is None or math.isnan(value):
            continue
        metric = _HUB_METRICS.get(name, "accuracy")
        found.append(
            EvalResult(
                task_type=_task(facts),
                task_name=f"multimodal {_kind(facts)}",
                dataset_type=_hub_name(facts.dataset_id) or facts.dataset,
                dataset_name=facts.dataset,
                dataset_split="test",
                metric_type=metric,
                metric_name=f"{METRICS[name].title}{seed}",
                metric_value=value,
                metric_args={"average": "weighted"} if metric == "f1" else None,
                verified=False,
            )
        )
    return found


def _base_model(facts: PluginFacts) -> str | None:
    """Hub id of the language model; None of one with random weights, or from another place."""
    path = facts.backbone.get("path")
    return None if _is_random(facts) or (path and is_local(path)) else _hub_name(path)


def _hub_name(name: str | None) -> str | None:
    """A name that the Hub can have."""
    try:
        validate_repo_id(name or "")
    except HFValidationError:
        return None
    return name


def _is_random(facts: PluginFacts) -> bool:
    return bool(facts.backbone.get("weights") == Weights.random.value)


def _read(facts: PluginFacts) -> dict[str, int]:
    """The features that the plugin reads, and their values per frame."""
    if facts.adapter.get("random_summaries"):
        return {}
    return {
        name: dim
        for name, dim in _dims(facts).items()
        if dim is not None and facts.adapter.get(f"use_{name}", True)
    }


def _dims(facts: PluginFacts) -> dict[str, int | None]:
    return {"audio": facts.audio_dim, "vision": facts.vision_dim}


def _text(facts: PluginFacts, parameters: int, name: str | None) -> str:
    read = _read(facts)
    template = (resources.files(__package__) / "README.md.jinja").read_text(encoding="utf-8")
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["md"] = escaped
    return environment.from_string(template).render(
        facts=facts,
        parameters=parameters,
        adapter=ADAPTERS.title(facts.adapter_name),
        read=" and ".join(f"{name} ({dim} values per frame)" for name, dim in read.items())
        or "no features",
        reads_text=facts.adapter.get("use_text", True),
        unread={name: dim for name, dim in _dims(facts).items() if name not in read},
        answers=_answers(facts),
        base=_base(facts),
        trained_on=_linked(facts.dataset, "datasets/", _hub_name(facts.dataset_id)),
        random=_is_random(facts),
        extracted=bool(read) and all(_extracts(facts, name) for name in read),
        place=json.dumps(name or "path/to/this/folder"),
        load=_load_arguments(facts),
        features=[
            {"name": name, "dim": dim, "extractor": _extractor(facts, name)}
            for name, dim in read.items()
        ],
        scores=[_score(name, value) for name, value in facts.test.items()],
    )


def _answers(facts: PluginFacts) -> str:
    words = describe_labels(facts.labels)
    return f"one of {words}" if facts.labels.kind is LabelKind.emotions else f"sentiment {words}"


def _base(facts: PluginFacts) -> str:
    """The language model: what it is, and how it was stored."""
    base, backbone = _base_model(facts), facts.backbone
    words = _linked(base, "", base) if base else escaped(backbone_title(backbone))
    if _is_random(facts):
        words += ", with random weights"
    if base and backbone.get("revision"):
        words += f", commit {escaped(backbone['revision'])}"
    if file := backbone.get("tokenizer_file") or backbone.get("tokenizer"):
        words += f", with the tokenizer {escaped(file)}"
    stored = [backbone.get("dtype"), backbone.get("quantization")]
    return ", ".join([words, *(str(how) for how in stored if how not in (None, "none"))])


def _linked(words: str, kind: str, name: str | None) -> str:
    text = escaped(words)
    return text if name is None else f"[{text}](https://huggingface.co/{kind}{name})"


def _load_arguments(facts: PluginFacts) -> str:
    """What :meth:`Plugin.load` has to be told: the places of what was local in training."""
    path, backbone = facts.backbone.get("path"), facts.backbone
    arguments = []
    if backbone.get("file") or (path and is_local(path)):
        arguments.append('path="path/to/the/language/model"')
    if backbone.get("tokenizer_file"):
        arguments.append('tokenizer="path/to/its/tokenizer"')
    return ", ".join(arguments)


def _extractor(facts: PluginFacts, name: str) -> str:
    """What extracted a feature, with its settings, and the hashes of local models among them."""
    found = facts.features.get(name)
    if found is None:
        return f"not recorded: they must be made as those of {escaped(facts.dataset)} were"
    settings = dict(found.get("settings") or {})
    hashes: Mapping[str, str] = settings.pop("fingerprints", {})
    written = [f"{key}={value}" for key, value in sorted(settings.items())]
    written += [f"hash of {key}={value[:12]}" for key, value in sorted(hashes.items())]
    version = f"{found.get('name')}, version {found.get('version')}"
    return escaped(f"{version} ({', '.join(written)})" if written else version)


def _extracts(facts: PluginFacts, name: str) -> bool:
    """Whether the plugin can extract a feature by itself: with no model from a local folder."""
    settings = facts.features.get(name, {}).get("settings") or {}
    local = settings.get("fingerprints", {}).keys() & settings.keys()
    return name in facts.features and not local


def _score(name: str, value: float | None) -> tuple[str, str]:
    """A metric's title and value."""
    info = METRICS.get(name)
    title = name if info is None else info.title
    if value is None or math.isnan(value):
        return title, "undefined"
    if info is None:
        return title, f"{value:.4f}"
    return title, info.format(value) + (" %" if info.percent else "")
