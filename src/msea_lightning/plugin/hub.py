"""Plugins on the Hugging Face Hub: fetched and published, with errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import Tensor

from msea_lightning.config.errors import UserError, first_line
from msea_lightning.plugin.facts import FACTS, WEIGHTS, PluginError, PluginFacts, portable
from msea_lightning.plugin.saving import write_plugin


def fetch(name: str, **download: Any) -> Path:
    """The folder with a plugin of the Hub, in the cache; its card is not fetched.

    Raises:
        PluginError: if there is no such name, no access, or no connection.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=[FACTS, WEIGHTS], **download))
    except HFValidationError as error:
        raise PluginError(
            f"There is no folder {name}, and it is no name on the Hugging Face Hub either: give "
            "the plugin/ folder of a finished run, or a name such as user/plugin."
        ) from error
    except Exception as error:
        # The HTTP library under huggingface_hub differs between its versions, so do its errors.
        raise PluginError(
            f"{name} is no folder here, and {_no_plugin(name, download.get('revision'), error)}"
        ) from error


def publish(
    name: str,
    facts: PluginFacts,
    weights: Mapping[str, Tensor],
    *,
    private: bool | None,
    token: str | bool | None,
    branch: str | None,
    commit_message: str,
    create_pr: bool | None,
) -> str:
    """Writes a plugin to the Hub in one commit, and returns the commit's address.

    For arguments and errors see :meth:`msea_lightning.plugin.Plugin.push_to_hub`.
    """
    api = HfApi(token=token)
    with _explained(name, branch), TemporaryDirectory() as folder:
        # With the account's name before it.
        full = api.create_repo(name, private=private, exist_ok=True).repo_id
        write_plugin(Path(folder), portable(facts), weights, full)
        return api.upload_folder(
            repo_id=full,
            folder_path=folder,
            commit_message=commit_message,
            revision=branch,
            create_pr=create_pr,
        )


def _no_plugin(name: str, revision: str | None, error: Exception) -> str:
    """Why there is nothing of that name, and what to do."""
    if isinstance(error, GatedRepoError):
        return (
            f"the plugin {name} on the Hugging Face Hub is given on request alone: ask for access "
            "on its page, then run `hf auth login`, or give token=..."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"the plugin {name} on the Hugging Face Hub has no revision {revision}."
    if isinstance(error, RepositoryNotFoundError) or _status(error) in (401, 403):
        return (
            f"there is no plugin {name} on the Hugging Face Hub, or your account may not see it. "
            "Check the name; for a private one run `hf auth login`, or give token=..."
        )
    if isinstance(error, LocalTokenNotFoundError):
        return "token=True needs a login: run `hf auth login`, or give the token itself."
    return (
        f"the plugin {name} could not be fetched from the Hugging Face Hub: "
        f"{type(error).__name__}: {first_line(error)}. Check the connection, or fetch it where "
        f"there is one (hf download {name}) and give that folder."
    )


@contextmanager
def _explained(name: str, branch: str | None) -> Iterator[None]:
    """Turns whatever goes wrong on the way to the Hub into a PluginError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # see fetch
        why = f"({type(error).__name__}: {first_line(error)})"
        if isinstance(error, HFValidationError):
            what = f"is no name on the Hugging Face Hub {why}: give one such as user/plugin."
        elif isinstance(error, LocalTokenNotFoundError) or _status(error) == 401:
            what = (
                "cannot be published without a login: run `hf auth login` with a token that may "
                "write, or give it as token=..."
            )
        elif _status(error) == 403:
            what = (
                f"cannot be published by this account {why}: give a name of your own or of an "
                "organization of yours, and a token that may write."
            )
        elif isinstance(error, RevisionNotFoundError):
            what = f"has no branch {branch}: create it (hf repo branch create {name} {branch})."
        elif isinstance(error, ValueError):
            what = f"was refused by the Hugging Face Hub: {' '.join(str(error).split())}"
        else:
            what = f"could not be published {why}: check the connection, and publish it again."
        raise PluginError(f"The plugin {name} {what}") from error


def _status(error: Exception) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None
