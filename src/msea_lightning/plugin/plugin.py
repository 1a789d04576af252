"""A trained plugin, as people use it: load it, plug it into a language model, publish it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from torch import Tensor

from msea_lightning.backbone import FrozenBackbone
from msea_lightning.model.adapted_lm import AdaptedLM
from msea_lightning.plugin.card import check_front_matter, model_card
from msea_lightning.plugin.facts import PluginError, PluginFacts, portable
from msea_lightning.plugin.hub import publish
from msea_lightning.plugin.loading import load_recorded_backbone, read_plugin
from msea_lightning.plugin.predictor import Predictor
from msea_lightning.plugin.saving import plugin_weights, size, write_plugin

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(eq=False)
class Plugin(ModelHubMixin):
    """A trained plugin; the language model that it belongs in front of is no part of it.

    Attributes:
        facts: What ``plugin.json`` says.
        weights: Its tensors by name, ``adapter.*``, ``standardizer.*`` and ``readout.*``.
    """

    facts: PluginFacts
    weights: Mapping[str, Tensor] = field(repr=False)

    def __post_init__(self) -> None:
        # All of it is in plugin.json; the mixin would write the facts a second time.
        self._hub_mixin_config = None

    @classmethod
    def from_pretrained(  # type: ignore[override] # no arguments of a class beside those
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Plugin:
        """Reads a plugin folder, or fetches one from the Hugging Face Hub.

        Args:
            pretrained_model_name_or_path: The ``plugin/`` folder of a run, or a Hub name.
            revision: Branch, tag or commit on the Hub; ``main`` where not given.
            token: Access token; that of ``hf auth login`` where not given.
            cache_dir: Where the Hub's files are kept; that of huggingface_hub where not given.
            force_download: Fetch them again.
            local_files_only: Take what was fetched before.

        Raises:
            PluginError: if there is no such plugin, no access to it or no connection, or it is
                incomplete, broken, or of another format.
        """
        facts, weights = read_plugin(
            pretrained_model_name_or_path,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        return cls(facts, weights)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        license: str | None = None,
        language: str | None = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        **publication: Any,
    ) -> str | None:
        """Writes the plugin into a folder: ``adapter.safetensors``, ``plugin.json``, ``README.md``.

        The three are replaced where they are there already; ``README.md`` is the model card.

        Args:
            save_directory: The folder, which is made if needed.
            license: Licence of the weights, as the Hub writes it (``cc-by-nc-4.0``, ``other``); as
                the plugin says where not given, which says none at first.
            language: ISO 639 code of the data's language (``en``, ``zh``), likewise.
            repo_id: With ``push_to_hub``: name on the Hub; the folder's where not given.
            push_to_hub: Publish it too.
            **publication: Further arguments of :meth:`push_to_hub`.

        Returns:
            With ``push_to_hub`` the address of the commit.

        Raises:
            PluginError: if licence or language is none, or the plugin cannot be published.
        """
        said = self._saying(license=license, language=language)
        if publication and not push_to_hub:
            raise PluginError(f"Only with push_to_hub=True: {', '.join(publication)}.")
        ModelHubMixin.save_pretrained(said, save_directory)
        if not push_to_hub:
            return None
        return said.push_to_hub(repo_id or Path(save_directory).name, **publication)

    def push_to_hub(  # type: ignore[override] # its files are always the same
        self,
        repo_id: str,
        *,
        license: str | None = None,
        language: str | None = None,
        commit_message: str = "Upload plugin",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
    ) -> str:
        """Publishes the plugin on the Hugging Face Hub: its three files, in one commit.

        Args:
            repo_id: Name on the Hub, such as ``user/plugin``; it is made if needed.
            license: See :meth:`save_pretrained`.
            language: See :meth:`save_pretrained`.
            commit_message: First line of the commit.
            private: Whether a name that is new is private; as the account has it where not given.
            token: Access token that may write; that of ``hf auth login`` where not given.
            branch: Branch that is there; ``main`` where not given.
            create_pr: Ask for the change in a pull request.

        Returns:
            The address of the commit.

        Raises:
            PluginError: without a login, access, such a branch or a connection, or if the Hub
                refuses the card.
        """
        said = self._saying(license=license, language=language)
        return publish(
            repo_id,
            said.facts,
            said.weights,
            private=private,
            token=token,
            branch=branch,
            commit_message=commit_message,
            create_pr=create_pr,
        )

    def generate_model_card(self, repo_id: str | None = None) -> ModelCard:
        """The model card, for a name on the Hub where one is given."""
        return model_card(self.facts, size(self.weights), repo_id)

    def _saying(self, *, license: str | None, language: str | None) -> Plugin:
        """The plugin with what its publisher says of it, if anything."""
        check_front_matter(license, language)
        facts = replace(
            self.facts,
            license=license or self.facts.license,
            language=language or self.facts.language,
        )
        return replace(self, facts=facts)

    def _save_pretrained(self, save_directory: Path) -> None:
        write_plugin(save_directory, portable(self.facts), self.weights)

    def load(
        self,
        path: str | Path | None = None,
        *,
        tokenizer: str | None = None,
        quantization: str | None = None,
        dtype: str | None = None,
        device: torch.device | str = "auto",
    ) -> Predictor:
        """Loads the language model that the plugin was trained on, and plugs it in.

        Args:
            path: Hub id, folder or ``.gguf`` file of the language model, where the plugin was
                trained on local files, or it lies elsewhere now.
            tokenizer: The place of its tokenizer, likewise.
            quantization: ``none``, ``int8`` or ``nf4``; as in training where not given.
            dtype: Compute dtype; as in training where not given.
            device: Where to put it; ``auto`` takes a GPU where there is one.

        Raises:
            PluginError: where the plugin does not tell where its language model or tokenizer is, or
                it is another one.
            BackboneError: where that cannot be loaded.
        """
        backbone = load_recorded_backbone(
            self.facts,
            path,
            tokenizer=tokenizer,
            quantization=quantization,
            dtype=dtype,
            device=device,
        )
        return self.attach(backbone)

    def attach(
        self,
        model: PreTrainedModel | FrozenBackbone,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Predictor:
        """Plugs into a language model that is loaded already.

        The language model stays as it is, without hooks, and generates what it generated before;
        while the plugin is attached it is in evaluation mode and its parameters take no gradient
        (:meth:`Predictor.detach` sets both back).

        Args:
            model: A causal language model of transformers, or a frozen one of ours.
            tokenizer: Its tokenizer; not for a frozen one, which has its own.

        Raises:
            PluginError: if the plugin was trained on another language model.
            BackboneError: if the model cannot be a backbone.
        """
        predictor = Predictor(model, tokenizer, pad_token=self.facts.prompt.pad_token)
        try:
            predictor.add(self)
        except BaseException:
            predictor.detach()
            raise
        return predictor


def load_plugin(folder: str | Path) -> Plugin:
    """The same as :meth:`Plugin.from_pretrained`."""
    return Plugin.from_pretrained(folder)


def load_plugin_backbone(
    plugin: Plugin, path: str | Path | None = None, **options: Any
) -> FrozenBackbone:
    """The language model that :meth:`Plugin.load` loads, with the same arguments and errors."""
    return load_recorded_backbone(plugin.facts, path, **options)


def save_plugin(folder: str | Path, model: AdaptedLM, facts: PluginFacts) -> None:
    """Writes a trained model as a plugin into a folder, which is made if needed."""
    Plugin(facts, plugin_weights(model)).save_pretrained(folder)
