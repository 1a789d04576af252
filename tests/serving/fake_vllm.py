"""A vLLM server as far as it is used here: it reads embeddings and computes with transformers."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import httpx
import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from torch import Tensor

from msea_lightning.backbone import FrozenBackbone


class FakeVLLM:
    """The server, and what it was asked.

    Attributes:
        app: The server as an ASGI application.
        bodies: The requests for completions.
        most_at_once: Most requests that were computed at a time.
        scale: What the server multiplies embeddings by, as another language model would.
        limit: ``--max-model-len``.
        failure: A response in place of the next answers.
        broken: So many next connections break.
    """

    def __init__(self, backbone: FrozenBackbone) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.most_at_once = self._at_once = 0
        self.scale, self.limit = 1.0, 512
        self.failure: tuple[int, Any] | None = None
        self.broken = 0
        self._backbone = backbone
        self.app = FastAPI()
        self.app.get("/v1/models")(self._models)
        self.app.post("/v1/completions")(self._completions)

    def transport(self) -> httpx.AsyncBaseTransport:
        """A network with nothing but this server."""
        return _Network(self)

    async def _models(self) -> dict[str, Any]:
        return {"data": [{"id": "tiny", "max_model_len": self.limit}]}

    async def _completions(self, request: Request) -> JSONResponse:
        body = await request.json()
        self.bodies.append(body)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        await asyncio.sleep(0)
        self._at_once -= 1
        if self.failure is not None:
            status, content = self.failure
            return JSONResponse(content, status)
        penalties = ("presence_penalty", "frequency_penalty", "repetition_penalty")
        asked = body["logprob_token_ids"]
        if (
            any(name in body for name in (*penalties, "prompt_logprobs"))
            or body["logprobs"] != len(asked)
            or len(asked) > 128
        ):
            return JSONResponse({"error": {"message": "refused"}}, 400)
        prompts = [self._embedded(prompt) for prompt in body.get("prompt_embeds", [])]
        prompts += [self._backbone.embed(torch.tensor(ids)) for ids in body.get("prompt", [])]
        choices = [
            {"index": index, "logprobs": {"top_logprobs": self._steps(prompt, body)}}
            for index, prompt in enumerate(prompts)
        ]
        return JSONResponse({"choices": choices[::-1]})

    def _embedded(self, prompt: str) -> Tensor:
        tensor = torch.load(io.BytesIO(base64.b64decode(prompt)), weights_only=True)
        assert tensor.shape[1] == self._backbone.width
        assert len(tensor.untyped_storage()) == tensor.numel() * tensor.element_size()
        return tensor * self.scale

    @torch.no_grad()
    def _steps(self, prompt: Tensor, body: dict[str, Any]) -> list[dict[str, float]]:
        found = []
        for _ in range(body["max_tokens"]):
            logits = self._backbone.model(inputs_embeds=prompt[None]).logits[0, -1]
            logp = logits.float().log_softmax(-1)
            allowed = body.get("allowed_token_ids", range(len(logp)))
            written = max(allowed, key=lambda token: float(logp[token]))
            tokens = [written, *body["logprob_token_ids"]]
            found.append({f"token_id:{token}": float(logp[token]) for token in tokens})
            prompt = torch.cat([prompt, self._backbone.embed(torch.tensor([written]))])
        return found


class _Network(httpx.ASGITransport):
    def __init__(self, server: FakeVLLM) -> None:
        super().__init__(server.app)
        self._server = server

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._server.broken:
            self._server.broken -= 1
            raise httpx.ConnectError("refused")
        return await super().handle_async_request(request)
