"""A client for what vLLM offers of OpenAI's HTTP interface, with errors that say what to do."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import httpx

from msea_lightning.serving.errors import EngineError, UnavailableError

_WAITS = (0.2, 1.0)
"""Seconds before a request is sent again after its connection broke."""

MOST_TOKENS = 128
"""Most tokens whose log probabilities vLLM gives at a position."""


class Completions:
    """Sends requests to a vLLM server, a bounded number at a time.

    Args:
        url: Address of the server; ``/v1`` at its end may be there.
        key: What the server was given as ``--api-key``.
        concurrency: Most requests at a time.
        timeout: Seconds that one request may take.
        observe: Called with the seconds that a request took.
        transport: Stands in for the network in tests.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        concurrency: int = 64,
        timeout: float = 60.0,
        observe: Callable[[float], None] = lambda seconds: None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._timeout = timeout
        self._observe = observe
        self._free = asyncio.Semaphore(concurrency)
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=timeout,
            limits=httpx.Limits(max_connections=concurrency),
            transport=transport,
            trust_env=False,  # an engine is near: no proxy of the environment is asked
        )

    async def models(self) -> list[dict[str, Any]]:
        """The models that the server serves, its own one first."""
        found: list[dict[str, Any]] = (await self._send("GET", "/v1/models")).get("data", [])
        return found

    async def log_probabilities(
        self,
        prompts: Mapping[str, Any],
        asked: Sequence[int],
        *,
        forced: int | None = None,
    ) -> list[list[dict[int, float]]]:
        """Log probabilities of given tokens after prompts, among the whole vocabulary.

        No penalty is ever sent: with embeddings it ends the engine (vLLM issue 57719).

        Args:
            prompts: ``prompt`` or ``prompt_embeds``, a list of N prompts.
            asked: At most 128 token ids.
            forced: A token to write after each prompt; the tokens after that are asked about too.

        Returns:
            For each prompt, in their order, the log probabilities by token id, at the next token
            and, with ``forced``, at the one after it.
        """
        steps = 1 if forced is None else 2
        body: dict[str, Any] = {
            **prompts,
            "max_tokens": steps,
            "temperature": 0,
            "ignore_eos": True,
            "logprobs": len(asked),
            "logprob_token_ids": list(asked),
            "return_tokens_as_token_ids": True,
        }
        if forced is not None:
            # Restricts what is written; log probabilities are those before it.
            body["allowed_token_ids"] = [forced]
        answer = await self._send("POST", "/v1/completions", body)
        try:
            choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
            found = [
                [
                    {token: float(step[f"token_id:{token}"]) for token in asked}
                    for step in choice["logprobs"]["top_logprobs"]
                ]
                for choice in choices
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError(
                f"The engine at {self.url} answers in another form than vLLM 0.32 "
                f"({type(error).__name__}: {error}): it has to be a vLLM server that knows "
                "logprob_token_ids."
            ) from error
        (expected,) = {len(value) for value in prompts.values()}
        values = [value for one in found for step in one for value in step.values()]
        if [len(one) for one in found] != [steps] * expected or not all(map(math.isfinite, values)):
            raise EngineError(
                f"The engine at {self.url} gave {len(found)} answers to {expected} prompts, or log "
                "probabilities that are no numbers: look into its log."
            )
        return found

    async def close(self) -> None:
        """Closes all connections."""
        await self._http.aclose()

    async def _send(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        async with self._free:
            start = perf_counter()
            response = await self._connected(method, path, body)
            self._observe(perf_counter() - start)
        if response.status_code in (401, 403):
            raise EngineError(
                f"The engine at {self.url} refuses the key: set VLLM_API_KEY in the environment of "
                "this server to the engine's --api-key."
            )
        if response.status_code >= 500:
            raise UnavailableError(
                f"The engine at {self.url} failed ({_said(response)}): look into its log."
            )
        if response.status_code >= 400:
            raise EngineError(f"The engine at {self.url} refuses a request ({_said(response)}).")
        try:
            found: dict[str, Any] = dict(response.json())
        except ValueError as error:
            raise EngineError(f"What answers at {self.url} is no vLLM server.") from error
        return found

    async def _connected(self, method: str, path: str, body: Any) -> httpx.Response:
        """What the server answers; a request whose connection breaks is sent again."""
        for wait in (*_WAITS, None):
            try:
                return await self._http.request(method, path, json=body)
            except httpx.TimeoutException as error:
                raise UnavailableError(
                    f"The engine at {self.url} did not answer within {self._timeout:g} s."
                ) from error
            except httpx.TransportError as error:
                if wait is None:
                    raise UnavailableError(
                        f"There is no connection to the engine at {self.url} "
                        f"({error or type(error).__name__}). Start it: vllm serve MODEL "
                        "--enable-prompt-embeds."
                    ) from error
                await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")


def _said(response: httpx.Response) -> str:
    """Status and reason of a response, cut to a line."""
    try:
        error = response.json()["error"]
        reason = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        reason = _visible(response.text)
    line = " ".join(reason.split())[:300]
    return f"{response.status_code}: {line}" if line else str(response.status_code)


def _visible(text: str) -> str:
    """The words of a web page, or of any other text."""
    return re.sub(r"(?s)<(style|script)\b.*?</\1>|<!--.*?-->|<[!/a-zA-Z][^>]*>", " ", text)
