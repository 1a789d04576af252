"""Answers by a vLLM server are those of this process; the wrong server is refused."""

from __future__ import annotations

import asyncio
import copy
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import torch

from msea_lightning import Answer, Plugin, Predictor, Utterance
from msea_lightning.backbone import BackboneError, FrozenBackbone, load_backbone
from msea_lightning.language.labels import LabelSpaceError
from msea_lightning.language.options import Decode
from msea_lightning.model.readout import TokenReadout
from msea_lightning.plugin import PluginError
from msea_lightning.plugin.batching import collate
from msea_lightning.serving import completions
from msea_lightning.serving.completions import Completions
from msea_lightning.serving.engines import Asked, Engine, LocalEngine
from msea_lightning.serving.errors import EngineError, UnavailableError
from msea_lightning.serving.prompt_embeds import embed_prompts
from msea_lightning.serving.vllm import VLLMEngine
from tests.conftest import SMALL, composed
from tests.plugin.untrained import untrained
from tests.serving.conftest import KINDS
from tests.serving.fake_vllm import FakeVLLM

Result = TypeVar("Result")


@pytest.fixture
def server(backbone: FrozenBackbone) -> FakeVLLM:
    return FakeVLLM(backbone)


@pytest.fixture(scope="session")
def thin(plugins: dict[str, Plugin]) -> Predictor:
    """The plugins in front of nothing but embeddings."""
    found = Predictor(load_backbone(None, embeddings_only=True))
    for name, plugin in plugins.items():
        found.add(plugin, name)
    return found


def run(engine_of: Callable[[], Engine], work: Callable[[Engine], Awaitable[Result]]) -> Result:
    async def main() -> Result:
        engine = engine_of()
        try:
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(main())


def vllm(predictor: Predictor, server: FakeVLLM, **options: Any) -> Callable[[], Engine]:
    def make() -> Engine:
        client = Completions("http://engine", transport=server.transport(), **options)
        return VLLMEngine(predictor, client, max_batch=4)

    return make


def assert_same(found: Sequence[Answer], expected: Sequence[Answer]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.id, one.plugin, one.label) == (other.id, other.plugin, other.label)
        assert one.distribution == pytest.approx(other.distribution, abs=1e-5)
        assert one.probability == pytest.approx(other.probability, abs=1e-5)
        assert one.mean == pytest.approx(other.mean, abs=1e-4)
        assert (one.median, one.interval) == (other.median, other.interval)


def test_answers_are_those_of_this_process(
    predictor: Predictor, thin: Predictor, server: FakeVLLM, utterances: list[Utterance]
) -> None:
    names = [list(KINDS)[number % len(KINDS)] for number in range(len(utterances))]
    asked = [Asked(*pair) for pair in zip(utterances, names, strict=True)]

    async def concurrently(engine: Engine) -> list[Answer]:
        found = await asyncio.gather(*(engine.answer([one]) for one in asked))
        return [answer for answers in found for answer in answers]

    assert_same(run(vllm(thin, server), concurrently), predictor.predict(utterances, plugin=names))


@pytest.mark.parametrize("decode", [Decode.median, Decode.mean])
def test_any_rule_picks_the_answer(
    predictor: Predictor,
    thin: Predictor,
    server: FakeVLLM,
    utterances: list[Utterance],
    decode: Decode,
) -> None:
    asked = [Asked(utterance, "sentiment", decode) for utterance in utterances[:3]]
    found = run(vllm(thin, server), lambda engine: engine.answer(asked))
    expected = predictor.predict(utterances[:3], plugin="sentiment", decode=decode)
    assert [answer.label for answer in found] == pytest.approx(
        [answer.label for answer in expected], abs=1e-5
    )
    with pytest.raises(LabelSpaceError, match="needs intensities"):
        run(vllm(thin, server), lambda e: e.answer([asked[0]._replace(plugin="emotion")]))


def test_the_local_engine_answers_as_the_predictor(
    predictor: Predictor, utterances: list[Utterance]
) -> None:
    sizes: list[int] = []
    asked = [Asked(utterance, "sentiment") for utterance in utterances]
    asked[1] = asked[1]._replace(decode=Decode.mean)
    asked[2] = asked[2]._replace(plugin="emotion")

    async def concurrently(engine: Engine) -> list[Answer]:
        await engine.start()
        await engine.check_health()
        found = await asyncio.gather(*(engine.answer([one]) for one in asked))
        return [answer for answers in found for answer in answers]

    make = lambda: LocalEngine(predictor, max_batch=4, observe=sizes.append)  # noqa: E731
    expected = [
        predictor.predict([one.utterance], plugin=one.plugin, decode=one.decode)[0] for one in asked
    ]
    assert_same(run(make, concurrently), expected)
    assert sizes == [4, 4]


@pytest.mark.parametrize("name", KINDS)
def test_prompts_are_what_the_language_model_reads_here(
    predictor: Predictor, utterances: list[Utterance], backbone: FrozenBackbone, name: str
) -> None:
    model = predictor.models[name]
    prompts = embed_prompts(predictor, utterances, [name] * len(utterances), 3)
    assert [prompt.id for prompt in prompts] == [utterance.id for utterance in utterances]
    for prompt, utterance in zip(prompts, utterances, strict=True):
        # Read by transformers itself, without a mask or positions.
        read = backbone.model(inputs_embeds=prompt.embeddings[None]).logits[0, -1]
        batch = collate(predictor.questions([utterance], plugin=name))
        states = model._answer_states(model.answer_inputs(batch))
        expected = TokenReadout(backbone, model.tree).token_logp(states)
        assert torch.allclose(
            read.log_softmax(-1)[model.tree.answer_ids[:, 0]], expected[0, :, 0], atol=1e-4
        )


def test_a_linear_readout_is_refused(
    cache: Path, backbone: FrozenBackbone, server: FakeVLLM
) -> None:
    config = copy.deepcopy(composed((*SMALL, "readout=linear", "training.loss=answers")))
    config.dataset.cache = str(cache)
    plugin, _ = untrained(config, backbone)
    thin = Predictor(load_backbone(None, embeddings_only=True))
    thin.add(plugin, "probe")
    with pytest.raises(EngineError, match=r"'probe' reads the last state .*: use engine=local"):
        vllm(thin, server)()


def test_embeddings_alone_are_small_and_compute_nothing(
    thin: Predictor, predictor: Predictor, utterances: list[Utterance]
) -> None:
    kept = [w for w in thin.backbone.model.parameters() if w.device.type != "meta"]
    assert sum(weight.numel() for weight in kept) == thin.backbone.vocabulary * thin.backbone.width
    assert thin.backbone.fingerprint() == predictor.backbone.fingerprint()
    assert thin.backbone.max_positions == predictor.backbone.max_positions
    with pytest.raises(BackboneError, match="only the embeddings were loaded"):
        thin.predict(utterances, plugin="emotion")


def test_embeddings_alone_refuse_plugins_of_another_language_model(
    plugins: dict[str, Plugin], thin: Predictor
) -> None:
    plugin = copy.deepcopy(plugins["gate"])
    plugin.facts.fingerprint["linear"] = "0"
    with pytest.raises(PluginError, match="this language model has"):
        thin.add(plugin, "other")


def answer_one(utterances: Sequence[Utterance]) -> Callable[[Engine], Awaitable[list[Answer]]]:
    return lambda engine: engine.answer([Asked(utterances[1], "emotion")])


def test_another_language_model_is_refused(
    thin: Predictor, server: FakeVLLM, utterances: list[Utterance]
) -> None:
    server.scale = 8.0
    with pytest.raises(EngineError, match="serves another language model"):
        run(vllm(thin, server), answer_one(utterances))


def test_an_engine_that_reads_too_little_is_refused(
    thin: Predictor, server: FakeVLLM, utterances: list[Utterance]
) -> None:
    server.limit = 20
    with pytest.raises(EngineError, match=r"tokens long, but .* reads 20 .*--max-model-len"):
        run(vllm(thin, server), answer_one(utterances))


def test_a_connection_that_breaks_is_made_again(
    thin: Predictor,
    server: FakeVLLM,
    utterances: list[Utterance],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(completions, "_WAITS", (0.0, 0.0))
    server.broken = 2
    assert len(run(vllm(thin, server), answer_one(utterances))) == 1
    server.broken = 3
    with pytest.raises(UnavailableError, match="no connection to the engine at http://engine"):
        run(vllm(thin, server), answer_one(utterances))


def test_an_engine_that_comes_back_is_checked_again(
    thin: Predictor, server: FakeVLLM, utterances: list[Utterance]
) -> None:
    async def work(engine: Engine) -> None:
        await answer_one(utterances)(engine)
        server.failure = (500, {"error": {"message": "EngineCore died"}})
        with pytest.raises(UnavailableError, match="EngineCore died"):
            await answer_one(utterances)(engine)
        server.failure, server.scale = None, 8.0
        with pytest.raises(EngineError, match="another language model"):
            await answer_one(utterances)(engine)

    run(vllm(thin, server), work)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ((400, {"error": {"message": "no\nembeds"}}), r"refuses a request \(400: no embeds\)"),
        ((401, {"error": "Unauthorized"}), "set VLLM_API_KEY"),
        ((200, {"choices": [{"index": 0, "logprobs": None}]}), "in another form than vLLM"),
        ((200, {"choices": []}), "gave 0 answers to 1 prompts"),
    ],
)
def test_an_engine_that_refuses_is_an_error(
    thin: Predictor,
    server: FakeVLLM,
    utterances: list[Utterance],
    failure: tuple[int, Any],
    message: str,
) -> None:
    server.failure = failure
    with pytest.raises(EngineError, match=message):
        run(vllm(thin, server), answer_one(utterances))


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_what_another_server_says_is_told_without_its_markup(end: str) -> None:
    page = (
        "<!DOCTYPE HTML>\n<html><head><style>p { color: red }</style><title>Error</title></head>"
        "<body><!-- here --><p class='a'>File not found, 1 < 2</p></body></html>"
    )
    paths = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        return httpx.Response(404, text=page)

    async def ask() -> None:
        completions = Completions(f"http://engine{end}", transport=httpx.MockTransport(answer))
        try:
            await completions.models()
        finally:
            await completions.close()

    expected = "at http://engine refuses a request (404: Error File not found, 1 < 2)."
    with pytest.raises(EngineError, match=re.escape(expected)):
        asyncio.run(ask())
    assert paths == ["/v1/models"]


def test_so_many_requests_and_no_more_are_at_the_engine(
    thin: Predictor, server: FakeVLLM, utterances: list[Utterance]
) -> None:
    asked = [Asked(utterance, "emotion") for utterance in utterances]
    run(vllm(thin, server, concurrency=3), lambda engine: engine.answer(asked))
    assert server.most_at_once == 3


def test_an_answer_of_one_token_is_one_request(
    thin: Predictor, server: FakeVLLM, utterances: list[Utterance]
) -> None:
    run(vllm(thin, server), answer_one(utterances))
    checks, answers = server.bodies[:2], server.bodies[2:]
    assert [next(key for key in body if "prompt" in key) for body in checks] == [
        "prompt",
        "prompt_embeds",
    ]
    assert len(answers) == 1
    assert torch.tensor(answers[0]["logprob_token_ids"]).unique().numel() == answers[0]["logprobs"]
