"""Every file under ``conf/``: it composes, it is typed, and it says what the paper says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from msea_lightning.adapter.options import ABLATIONS, ADAPTERS
from msea_lightning.backbone.options import BackboneConfig
from msea_lightning.commands.command_line import compose, conf_folder
from msea_lightning.config.errors import ConfigError
from msea_lightning.config.roots import (
    AppConfig,
    BenchConfig,
    DoctorConfig,
    EvaluateConfig,
    ExtractConfig,
    ImportOriginalConfig,
    PredictConfig,
    PrepareConfig,
    ReportConfig,
    SearchConfig,
    ServeConfig,
    TrainConfig,
)
from msea_lightning.data.options import LabelKind, Language, Repair
from msea_lightning.language.options import SegmentKind
from msea_lightning.metrics.options import MetricKind
from msea_lightning.paper import paper_table

CONF = conf_folder()
FILES = sorted(CONF.rglob("*.yaml"))
ROOTS: dict[str, type[Any]] = {
    "train": TrainConfig,
    "search": SearchConfig,
    "prepare": PrepareConfig,
    "evaluate": EvaluateConfig,
    "doctor": DoctorConfig,
    "report": ReportConfig,
    "bench": BenchConfig,
    "import_original": ImportOriginalConfig,
    "extract": ExtractConfig,
    "predict": PredictConfig,
    "serve": ServeConfig,
    "app": AppConfig,
}
NEEDED = {
    "app": ["plugin=somewhere"],
    "serve": ["plugin=somewhere"],
    "evaluate": ["run=somewhere"],
    "import_original": ["checkpoint=somewhere", "dataset=mosei", "backbone=qwen"],
    "extract": ["input=clips", "output=table"],
    "predict": ["plugin=somewhere", "input=clip.mp4"],
}
PAPER_DATASETS = ("mosei", "simsv2", "meld", "cherma")
RECIPES = [(row["dataset"], row["backbone"]) for row in paper_table("hyperparameters")]
TINY_WIDTH = 96


def train(*overrides: str) -> TrainConfig:
    # Any language model has no place of its own.
    place = ["backbone.path=somewhere"] if "backbone=auto" in overrides else []
    return compose("train", TrainConfig, [*overrides, *place])


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def test_there_are_files() -> None:
    folders = {path.parent.name for path in FILES}
    assert folders >= {"conf", "dataset", "backbone", "recipe", "prompt"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_every_file_composes(path: Path) -> None:
    parts = path.relative_to(CONF).with_suffix("").parts
    if len(parts) == 1:
        assert isinstance(compose(parts[0], ROOTS[parts[0]], NEEDED.get(parts[0], [])), object)
    elif parts[0] == "hydra":
        train()  # part of every configuration
    elif parts[:2] == ("backbone", "family"):
        members = [name for name in choices("backbone") if name.startswith(parts[2])]
        assert members  # which compose with it
    elif parts[0] == "space":
        tried = compose("search", SearchConfig, [f"adapter={parts[1]}"]).search.space
        assert "training" in tried
        assert "adapter" in tried
    elif parts[0] == "fraction":
        experiment, _, dataset = parts[1].partition("_")
        assert train(f"experiment={experiment}", f"dataset={dataset}").dataset.train_fraction < 1
        assert train(f"dataset={dataset}").dataset.train_fraction == 1
    elif parts[0] == "features":
        words = [*NEEDED["extract"], f"features={parts[1]}"]
        preset = compose("extract", ExtractConfig, words).features
        assert preset == (None if parts[1] == "none" else parts[1])
    else:
        group, choice = "/".join(parts[:-1]), parts[-1]
        config = train(f"{group}={choice}")
        if group in ("dataset", "backbone"):
            assert getattr(config, group).name == choice


@pytest.mark.parametrize(
    ("dataset", "backbone"),
    sorted(
        {(dataset, backbone) for dataset in choices("dataset") for backbone in ("tiny", "llama2")}
        | {("demo", backbone) for backbone in choices("backbone")}
        | set(RECIPES)
    ),
)
def test_every_data_set_and_every_backbone_composes(dataset: str, backbone: str) -> None:
    config = train(f"dataset={dataset}", f"backbone={backbone}")
    recipe = f"{dataset}_{backbone}"
    assert config.recipe == (recipe if recipe in choices("recipe") else None)
    if backbone == "tiny":
        units = [TINY_WIDTH // scale for scale in config.adapter.scales]
        assert min(units) >= 16
    else:
        assert config.adapter.scales == [8, 32, 16]


@pytest.mark.parametrize("dataset", choices("dataset"))
def test_every_data_set_can_be_prepared(dataset: str) -> None:
    config = compose("prepare", PrepareConfig, [f"dataset={dataset}"])
    assert config.dataset == train(f"dataset={dataset}").dataset


@pytest.mark.parametrize("words", [[], ["dataset=meld", "backbone=qwen", "adapter=mag"]])
def test_a_search_is_of_what_is_trained(words: list[str]) -> None:
    searched = compose("search", SearchConfig, words)
    for item in dataclasses.fields(TrainConfig):
        assert getattr(searched, item.name) == getattr(train(*words), item.name)


def test_there_are_twelve_recipes() -> None:
    assert len(set(RECIPES)) == 12
    names = {f"{dataset}_{backbone}" for dataset, backbone in RECIPES}
    small = {
        f"{dataset}_{backbone}"
        for dataset in ("demo", "mosi_utterance", "meld_text")
        for backbone in ("tiny", "smollm2-135m-instruct", "gemma3-270m")
    }
    assert set(choices("recipe")) - names == small | {"table_tiny", "none"}


@pytest.mark.parametrize(
    "row", paper_table("hyperparameters"), ids=lambda row: "-".join(row.values())
)
def test_recipes_are_those_of_the_paper(row: dict[str, str]) -> None:
    dataset, backbone = row["dataset"], row["backbone"]
    config = train(f"dataset={dataset}", f"backbone={backbone}")
    prompts = {
        (prompt["dataset"], prompt["backbone"]): prompt["prompt"]
        for prompt in paper_table("prompts")
    }
    found = {
        "audio_hidden": config.adapter.audio_hidden,
        "vision_hidden": config.adapter.vision_hidden,
        "pseudo_tokens": config.adapter.pseudo_tokens,
        "learning_rate": config.training.learning_rate,
        "batch_size": config.training.batch_size,
        "schedule_epochs": config.training.schedule_epochs,
        "patience": config.training.patience,
    }
    assert found == {name: float(row[name]) for name in found}
    assert config.prompt.task == prompts[dataset, backbone]
    assert config.recipe == f"{dataset}_{backbone}"
    assert (config.adapter.hidden, config.training.eps) == (256, 1e-4)
    assert (config.training.weight_decay, config.training.warmup_fraction) == (0.01, 0.1)


@pytest.mark.parametrize("row", paper_table("datasets"), ids=lambda row: row["dataset"])
def test_data_sets_are_those_of_the_paper(row: dict[str, str]) -> None:
    data = train(f"dataset={row['dataset']}").dataset
    assert data.language is Language(row["language"])
    numbers = {
        "train": data.expected_train,
        "valid": data.expected_valid,
        "test": data.expected_test,
        "audio_dim": data.audio_dim,
        "vision_dim": data.vision_dim,
        "text_tokens": data.text_tokens,
    }
    assert numbers == {name: int(row[name]) for name in numbers}
    if row["task"] == "MSA":
        assert data.labels.kind is LabelKind.scale
        low, high = row["label_space"].split("..")
        assert (data.labels.low, data.labels.high) == (float(low), float(high))
        assert data.metrics is MetricKind(row["dataset"])
    else:
        assert data.labels.kind is LabelKind.emotions
        written = [f"{name}:{index}" for index, name in enumerate(data.labels.names)]
        assert " ".join(written) == row["label_space"]
        assert data.metrics is MetricKind.emotion
    assert data.hub_id is not None
    assert data.hub_id in data.source
    assert (data.repair, data.standardize) == (Repair.zero, False)


@pytest.mark.parametrize("dataset", PAPER_DATASETS)
def test_without_a_recipe_the_prompt_is_that_of_the_paper(dataset: str) -> None:
    prompts = {
        row["dataset"]: row["prompt"]
        for row in paper_table("prompts")
        if row["backbone"] == "paper"
    }
    assert train(f"dataset={dataset}", "backbone=tiny").prompt.task == prompts[dataset]
    assert train(f"dataset={dataset}", "backbone=tiny", "prompt=none").prompt.task is None


@pytest.mark.parametrize("dataset", sorted({*choices("dataset")} - {*PAPER_DATASETS}))
def test_other_data_sets_get_a_prompt_made_for_them(dataset: str) -> None:
    assert train(f"dataset={dataset}").prompt.task is None


def test_own_and_demo_data_are_standardised() -> None:
    for dataset in ("table", "demo"):
        data = train(f"dataset={dataset}").dataset
        assert (data.standardize, data.repair) == (True, Repair.refuse)


def test_the_command_line_wins_over_the_recipe() -> None:
    pair = ("dataset=mosei", "backbone=qwen")
    assert train(*pair).training.learning_rate == 5e-3
    config = train(
        "training.learning_rate=1e-3", "adapter.pseudo_tokens=9", *pair, "prompt.task=Say"
    )
    assert config.training.learning_rate == 1e-3
    assert config.adapter.pseudo_tokens == 9
    assert config.prompt.task == "Say"
    assert config.training.patience == 10
    assert config.recipe == "mosei_qwen"


@pytest.mark.parametrize("pair", [("demo", "tiny"), ("mosei", "chatglm3")])
@pytest.mark.parametrize("adapter", ADAPTERS.names())
def test_an_adapter_has_its_own_options_alone(adapter: str, pair: tuple[str, str]) -> None:
    """Whatever recipes and backbones set for another one."""
    dataset, backbone = pair
    untrained = ["training.schedule_epochs=0"] if adapter == "none" else []
    config = train(f"dataset={dataset}", f"backbone={backbone}", f"adapter={adapter}", *untrained)
    assert type(config.adapter) is ADAPTERS.options(adapter)
    assert config.recipe == f"{dataset}_{backbone}"


@pytest.mark.parametrize("adapter", ["mag", "chfn"])
@pytest.mark.parametrize("ablation", ABLATIONS.names())
def test_ablations_of_what_an_adapter_lacks_are_refused(adapter: str, ablation: str) -> None:
    choice = (f"adapter={adapter}", f"ablation={ablation}")
    if ablation in ("none", "no_audio", "no_vision"):
        assert train(*choice).ablation.name == ablation
    else:
        with pytest.raises(
            ConfigError, match=rf"ablation={ablation}\): {adapter.upper()} has nothing of that kind"
        ):
            train(*choice)


def test_the_tiny_backbone_takes_one_thread_unless_told_otherwise() -> None:
    assert train("trainer=cpu").trainer.threads == 1
    assert train("trainer.threads=null").trainer.threads is None
    assert train("backbone=llama2").trainer.threads is None


def test_a_recipe_can_be_named_or_left_out() -> None:
    assert train("recipe=meld_llama2").training.batch_size == 6
    config = train("dataset=meld", "backbone=llama2", "recipe=none")
    assert (config.recipe, config.training.batch_size) == (None, 16)


def test_the_default_is_the_demo() -> None:
    config = train()
    assert (config.dataset.name, config.backbone.name) == ("demo", "tiny")
    assert (config.adapter.name, config.ablation.name) == ("mse", "none")
    assert config.recipe == "demo_tiny"
    assert config.seed == 1111


MULTIMODAL = ["<Multimodal>|<多模态>", "pseudo", "text", "</Multimodal>|</多模态>", "prompt"]
QUESTION = "{question}\n\n <Multimodal>|{问题}\n\n <多模态>"
LAYOUTS = {
    "tiny": ["<s>", "<s>", *MULTIMODAL],
    "llama2": ["<s>", "<s>", *MULTIMODAL],
    "qwen": ["<|im_start|>", "<|im_start|>", *MULTIMODAL],
    "chatglm3": ["[gMASK]", "sop", QUESTION, *MULTIMODAL[1:]],
}
BEGINNINGS = {
    "auto": ["bos"],
    "gemma2": ["<bos>"],
    "gemma3": ["<bos>"],
    "glm4": ["[gMASK]", "<sop>"],
    "llama3.1": ["<|begin_of_text|>"],
    "llama3.2": ["<|begin_of_text|>"],
    "mistral": ["<s>"],
    "qwen2.5": [],
    "qwen3": [],
    "smollm2": ["<|endoftext|>"],
    "smollm2-135m": ["bos"],  # the one that was taught to follow instructions
    "smollm3": ["bos"],
}
DERIVED = ("auto", "smollm2-135m-instruct")
UNSIGNED = ("tiny", "llama2", "chatglm3", "mistral-7b")


def written(backbone: BackboneConfig) -> list[str]:
    texts = {SegmentKind.token: "{0.token}", SegmentKind.literal: "{0.en}|{0.zh}"}
    return [
        texts.get(segment.kind, segment.kind.value).format(segment) for segment in backbone.layout
    ]


@pytest.mark.parametrize("backbone", sorted(LAYOUTS))
def test_sequences_are_those_of_the_original(backbone: str) -> None:
    config = train(f"backbone={backbone}").backbone
    assert written(config) == LAYOUTS[backbone]
    assert config.signed_labels == (backbone == "qwen")


@pytest.mark.parametrize("backbone", sorted({*choices("backbone")} - {*LAYOUTS}))
def test_other_sequences_begin_as_the_tokenizer_does(backbone: str) -> None:
    """Checked by hand with the real tokenizers of Qwen3, LLaMA 3.1, Gemma 3 and Mistral."""
    config = train(f"backbone={backbone}").backbone
    assert written(config) == [*BEGINNINGS[backbone.rpartition("-")[0] or backbone], *MULTIMODAL]
    expected = None if backbone in DERIVED else backbone not in UNSIGNED
    assert config.signed_labels is expected


def test_families_are_no_choices() -> None:
    with pytest.raises(ConfigError, match=r"no such choice.*qwen3-0\.6b, qwen3-1\.7b") as caught:
        train("backbone=qwen3")
    assert "family" not in str(caught.value)


# Parameters as counted in the published files, and the longest sequence of their training.
PUBLISHED = {
    "llama2": (6_738_415_616, 4096),
    "qwen": (1_836_828_672, 8192),
    "chatglm3": (6_243_584_000, 8192),
    "qwen2.5-0.5b": (494_032_768, 32768),
    "qwen2.5-1.5b": (1_543_714_304, 131072),
    "qwen2.5-3b": (3_085_938_688, 32768),
    "qwen2.5-7b": (7_615_616_512, 131072),
    "qwen3-0.6b": (596_049_920, 32768),
    "qwen3-1.7b": (1_720_574_976, 32768),
    "qwen3-4b": (4_022_468_096, 32768),
    "qwen3-8b": (8_190_735_360, 32768),
    "llama3.1-8b": (8_030_261_248, 131072),
    "llama3.1-70b": (70_553_706_496, 131072),
    "llama3.2-1b": (1_235_814_400, 131072),
    "llama3.2-3b": (3_212_749_824, 131072),
    "glm4-9b": (9_399_951_360, 8192),
    "gemma2-2b": (2_614_341_888, 8192),
    "gemma3-1b": (999_885_952, 32768),
    "gemma3-270m": (268_098_176, 32768),
    "mistral-7b": (7_248_023_552, 32768),
    "smollm2-135m": (134_515_008, 8192),
    "smollm2-135m-instruct": (134_515_008, 8192),
    "smollm2-360m": (361_821_120, 8192),
    "smollm2-1.7b": (1_711_376_384, 8192),
    "smollm3-3b": (3_075_098_624, 65536),
}


@pytest.mark.parametrize("backbone", sorted({*choices("backbone")} - {"auto", "tiny"}))
def test_architectures_are_those_of_the_published_models(backbone: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    fields = dict(train(f"backbone={backbone}").backbone.architecture)
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    for name, value in fields.items():
        if name != "partial_rotary_factor":  # kept among the parameters of the rotation
            assert getattr(config, name) == value
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    parameters = sum(weight.numel() for weight in model.parameters())
    assert (parameters, config.max_position_embeddings) == PUBLISHED[backbone]
    if backbone in ("chatglm3", "glm4-9b"):
        assert model.model.rotary_emb.inv_freq.numel() == 128 // 2 // 2  # half of every head
