"""Putting a plugin in front of a language model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from msea_lightning.adapter import Adapter, FeatureStandardizer
from msea_lightning.adapter.options import ADAPTERS
from msea_lightning.backbone import FrozenBackbone
from msea_lightning.backbone.fingerprint import same_model
from msea_lightning.backbone.frozen import padding_id
from msea_lightning.language.answers import AnswerTree
from msea_lightning.language.labels import LabelSpace
from msea_lightning.language.options import Loss, SegmentKind
from msea_lightning.language.prompt import Prompt, encode
from msea_lightning.language.wording import Wording
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.model.build import build_answers, build_readout
from msea_lightning.model.options import ReadoutKind
from msea_lightning.plugin.facts import PluginError, PluginFacts, backbone_title

if TYPE_CHECKING:
    from msea_lightning.plugin.plugin import Plugin

_log = logging.getLogger(__name__)


def attach(
    plugin: Plugin, backbone: FrozenBackbone, *, fingerprint: Mapping[str, str] | None = None
) -> AdaptedLM:
    """Puts a plugin in front of a language model, as the model that answers batches.

    The language model itself is not touched; several plugins can be attached to one at a time.
    Where its linear layers are quantised otherwise than in training, a warning says so.

    Args:
        plugin: The plugin.
        backbone: The language model.
        fingerprint: The language model's, where it is known already.

    Raises:
        PluginError: if it is another language model (both fingerprints are given), or the weights
            do not fit the facts.
    """
    facts = plugin.facts
    _check_backbone(facts, backbone, fingerprint or backbone.fingerprint())
    space = LabelSpace.from_config(
        facts.labels, signed=facts.signed_labels, encode=partial(encode, backbone.tokenizer)
    )
    make: Callable[..., Adapter] = ADAPTERS.load(facts.adapter_name)
    # Without memory: the weights are taken from the plugin.
    with torch.device("meta"):
        adapter = make(**facts.adapter)
    last = facts.prompt.layout[-1].kind
    if adapter.anchored and last is not SegmentKind.pseudo:
        raise PluginError(
            "The plugin.json has adapter.anchored=true, with which pseudo tokens come last, but "
            f"{last.value} is last in its prompt.layout: copy the whole plugin/ folder of the run "
            "again."
        )
    prompt = Prompt(
        facts.prompt.layout,
        backbone.tokenizer,
        language=facts.prompt.language,
        task=facts.prompt.task,
        pseudo_tokens=adapter.pseudo_tokens,
        text_tokens=facts.prompt.text_tokens,
        pad_id=padding_id(backbone.tokenizer, facts.prompt.pad_token),
        pad_to=facts.prompt.pad_to,
        attend_padding=facts.prompt.attend_padding,
        wording=Wording(
            case=facts.prompt.text_case,
            context=facts.prompt.context,
            context_tokens=facts.prompt.context_tokens,
            template=facts.prompt.context_template,
        ),
        text_changes=adapter.changes_text,
        anchored=adapter.anchored,
    )
    tree = build_answers(prompt, space, facts.readout)
    weights: dict[str, dict[str, Tensor]] = {"adapter": {}, "standardizer": {}, "readout": {}}
    for name, tensor in plugin.weights.items():
        part, _, rest = name.partition(".")
        weights.setdefault(part, {})[rest] = tensor
    if unknown := weights.keys() - {"adapter", "standardizer", "readout"}:
        raise PluginError(
            f"The plugin holds weights of {', '.join(sorted(unknown))}, which this release does "
            "not know: use the release that wrote it, or copy the plugin again."
        )
    prior = weights["readout"].get("prior")
    _check_readout(facts, prior, tree)
    readout = build_readout(facts.readout, facts.loss, backbone, tree, prior=prior)
    try:
        adapter.load_state_dict(weights["adapter"], assign=True)
        readout.load_state_dict(weights["readout"], assign=True)
    except RuntimeError as error:
        raise PluginError(
            f"The plugin's weights do not fit its plugin.json: {' '.join(str(error).split())}"
        ) from error
    model = AdaptedLM(
        backbone,
        adapter,
        standardizer=FeatureStandardizer.from_state_dict(weights["standardizer"]),
        prompt=prompt,
        tree=tree,
        rule=facts.decode,
        readout=readout,
    )
    model.to(backbone.device)
    return model.eval()


def _check_readout(facts: PluginFacts, prior: Tensor | None, tree: AnswerTree) -> None:
    """Refuses a readout, or a prior (1 + M, C), that is not what the facts say."""
    linear = facts.readout is ReadoutKind.linear
    if (linear or facts.calibrated) and facts.loss is not Loss.answers:
        what = "readout=linear" if linear else "calibrated=true"
        raise PluginError(
            f"The plugin.json has {what}, which gives probabilities of legal answers, but "
            f"loss={facts.loss.value}: copy the whole plugin/ folder of the run again."
        )
    expected = tuple(tree.follows.shape) if facts.calibrated else None
    found = None if prior is None else tuple(prior.shape)
    if found != expected:
        raise PluginError(
            "The plugin's weights do not fit its plugin.json: readout.prior has the shape "
            f"{found}, but calibrated={str(facts.calibrated).lower()} and the labels need "
            f"{expected} (None: there is none). Copy the whole plugin/ folder of the run again."
        )


def _check_backbone(facts: PluginFacts, backbone: FrozenBackbone, found: Mapping[str, str]) -> None:
    if not facts.fingerprint:
        _check_unseen(facts, backbone)
        return
    expected = facts.fingerprint
    bits = {"is_loaded_in_4bit": "nf4", "is_loaded_in_8bit": "int8"}
    found_here = (how for name, how in bits.items() if getattr(backbone.model, name, False))
    here = next(found_here, "none")
    # Release 0.1 did not write it down; the names of the fingerprint's parts tell it.
    dense = "linear" in expected
    trained = facts.backbone.get("quantization") or ("none" if dense else here)
    if trained != here:
        found = {part: value for part, value in found.items() if not part.startswith("linear")}
    if not same_model(expected, found):
        raise PluginError(
            f"The plugin was trained on {backbone_title(facts.backbone)} with the fingerprint "
            f"{_listed(expected)}, but this language model has {_listed(found)}. Attach it to the "
            f"language model that it was trained on{_commit(facts)}, or train a plugin for this "
            "one."
        )
    if trained != here:
        _log.warning(
            "the plugin was trained on %s with quantization=%s, and here it has quantization=%s: "
            "answers may differ from those that were measured",
            backbone_title(facts.backbone),
            trained,
            here,
        )


def _commit(facts: PluginFacts) -> str:
    """Where a language model of the Hub is as it was in training: it may have changed since."""
    name, revision = facts.backbone.get("path"), facts.backbone.get("revision")
    return f" (hf download {name} --revision {revision}, and give that folder)" if revision else ""


def _check_unseen(facts: PluginFacts, backbone: FrozenBackbone) -> None:
    """Says that nothing but its width is known of the language model of an imported plugin."""
    title, width = backbone_title(facts.backbone), facts.adapter["text_dim"]
    if width != backbone.width:
        raise PluginError(
            f"The plugin was trained on {title}, whose width is {width}, but this language model "
            f"has {backbone.width}. Attach it to the language model that it was trained on."
        )
    _log.warning(
        "the plugin was imported without its language model, %s: whether this is the same one "
        "cannot be checked, and on another one its answers mean nothing. Import it again with "
        "backbone.path=<where the language model is here> to have that checked from then on",
        title,
    )


def _listed(fingerprint: Mapping[str, str]) -> str:
    return ", ".join(f"{part} {value}" for part, value in sorted(fingerprint.items()))
