"""Config: types and defaults, overrides, round trip, schema."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsim.algorithms import METHODS
from fedsim.config.experiment import Config, dump_config
from fedsim.config.plain_yaml import parse, to_yaml
from fedsim.config.train import TrainConfig
from fedsim.configure import CONFIGS, load_config, run_schema
from fedsim.errors import UserError

ROOT = Path(__file__).parents[3]
VALID: dict[str, Any] = {
    "name": "small",
    "rounds": 3,
    "algorithm": {"name": "fedprox", "mu": 0.1},
    "model": {"name": "packaged:vit_small_dino", "lora": {"r": 4}},
    "data": {"name": "digits"},
    "clients": {"count": 4, "partition": {"name": "dirichlet", "alpha": 0.1}},
    "train": {"lr": 0.01},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(VALID))
    return path


def test_defaults_fill_in(file: Path) -> None:
    config = load_config(file)
    assert (config.seed, config.train.epochs, config.train.steps, config.train.optimizer) == (
        0,
        1,
        None,
        "sgd",
    )
    assert (config.model.train, config.model.classifier) == ("lora", "linear")
    assert config.model.lora is not None
    assert (config.model.lora.r, config.model.lora.lora_alpha) == (4, 8.0)
    assert config.model.lora.target == ("q", "k", "v")
    assert config.algorithm.settings == {"mu": 0.1}


def test_defaults_that_depend_on_other_keys(file: Path) -> None:
    text = load_config(file, ["model={name: open_clip:ViT-B-32}", "train.steps=7"])
    assert (text.model.train, text.model.classifier) == ("all", "text")
    assert (text.train.steps, text.train.epochs) == (7, None)


def test_method_defaults_are_resolved(file: Path) -> None:
    assert load_config(file, ["algorithm={name: fedprox}"]).algorithm.settings == {"mu": 0.01}
    assert load_config(file, ["algorithm={name: deer}"]).algorithm.settings == {}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.lr=1e-3", 0.001),
        ("train.lr=1E-3", 0.001),
        ("train.lr=+.5", 0.5),
        ("train.lr=1", 1.0),
        ("train.lr=5.", 5.0),
    ],
)
def test_override_numbers(file: Path, override: str, expected: float) -> None:
    lr = load_config(file, [override]).train.lr
    assert (type(lr), lr) == (float, expected)


def test_overrides_win_over_the_file_and_the_last_one_over_the_others(file: Path) -> None:
    config = load_config(file, ["rounds=5", "clients.partition={name: iid}", "rounds=7"])
    assert config.rounds == 7
    assert config.clients.partition.name == "iid"


def test_override_reaches_into_a_section_that_the_file_leaves_out(file: Path) -> None:
    assert load_config(file, ["evaluate.best_by=f1", "train.schedule.name=cosine"]).evaluate.best_by == "f1"


def test_override_with_an_equals_sign_in_its_value(file: Path) -> None:
    prompt = "model={name: open_clip:x, prompt: 'a=b {}'}"
    assert load_config(file, [prompt]).model.prompt == "a=b {}"


@pytest.mark.parametrize("method", sorted(name for name, path in METHODS.items() if ".lora." in path))
def test_every_lora_method_is_a_word_of_quickstart(method: str) -> None:
    config = load_config(ROOT / "configs/quickstart.yaml", [f"algorithm.name={method}"])
    assert config.algorithm.name == method


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [
            "train.steps=5",
            "train.weight_decay=1e-300",
            "train.lr=0.1",
            "train.schedule={name: step, every: 2, factor: 0.5}",
        ],
        ["model={name: 'timm:x', weights: random, options: {a: [1, 2.5, b], c: true, d: '1e3'}}"],
        ["model={name: 'open_clip:hf-hub:a/b', lora: {target: [proj]}}", "clients.per_round=0.5"],
        ["train.optimizer=adamw", "train.betas=[0, 0.5]", "train.clip_norm=1e-7", "evaluate.patience=3"],
        ["name='010'", "model.name='timm:1e3'", "data.augment=[flip, crop]", "clients.per_round=3"],
        [
            "algorithm={name: deer}",
            "clients.partition={name: shards, per_client: 2}",
            "seed=4294967295",
        ],
    ],
)
def test_dump_loads_back_equal(file: Path, tmp_path: Path, overrides: list[str]) -> None:
    config = load_config(file, overrides)
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(again) == config
    assert dump_config(load_config(again)) == dump_config(config)


@pytest.mark.parametrize(
    "text", ["no", "1e3", "010", "08", "1:30", "2026-01-01", "null", "", "a: b", "é", "1_0", "~", "\t"]
)
def test_texts_stay_texts(text: str) -> None:
    dumped = to_yaml({"key": text})
    assert parse(dumped, "here") == {"key": text}
    assert yaml.safe_load(dumped) == {"key": text}  # for readers with PyYAML's own rules


def test_plain_scalars_have_no_surprises() -> None:
    read = parse("{a: no, b: 1e-3, c: 1:30, d: 2026-01-01, e: 010, f: true, g: ~, h: .5, i: 1e400}", "here")
    assert read == {
        "a": "no",
        "b": 0.001,
        "c": "1:30",
        "d": "2026-01-01",
        "e": 10,
        "f": True,
        "g": None,
        "h": 0.5,
        "i": float("inf"),
    }


def test_leaving_out_clients_that_a_partition_never_makes_is_refused(file: Path) -> None:
    assert load_config(file, ["clients.min_samples=4", "clients.partition.min_size=3"]).clients.min_samples == 4
    with pytest.raises(UserError, match=r"clients.min_samples: found 3; expected null, or more than .*min_size = 3"):
        load_config(file, ["clients.min_samples=3", "clients.partition.min_size=3"])


def test_config_cannot_be_changed(file: Path) -> None:
    config = load_config(file)
    with pytest.raises(ValueError, match="frozen"):
        config.train.lr = 1.0  # type: ignore[misc]  # the test is that this is refused


def test_models_are_usable_without_a_file() -> None:
    assert TrainConfig(lr=1).schedule.name == "constant"
    with pytest.raises(ValueError, match="lr2"):
        TrainConfig.model_validate({"lr": 1, "lr2": 1})


def test_missing_file_names_the_nearest(file: Path) -> None:
    with pytest.raises(UserError, match=r"smal\.yaml: found no file .*such as .*small\.yaml"):
        load_config(file.with_name("smal.yaml"))


def test_unknown_key_names_the_nearest(file: Path) -> None:
    file.write_text(yaml.safe_dump(VALID | {"train": {"lrr": 0.1}, "seeds": 3}))
    with pytest.raises(UserError) as caught:
        load_config(file)
    line = str(caught.value)
    assert line.startswith(f"{file}: train.lrr: found an unknown key; expected lr (nearest; known: optimizer, lr,")
    assert line.endswith("(and 2 more)")
    file.write_text(yaml.safe_dump(VALID | {"train": {"lr": 1, "lrr": 0.1}}))
    with pytest.raises(UserError, match=r"train\.lrr: found an unknown key; expected lr \(nearest; known: .*[^)]\)$"):
        load_config(file)


def test_mistake_on_the_command_line_is_said_to_be_there(file: Path) -> None:
    with pytest.raises(UserError, match=r"^command line: train.lr: found 'x'; expected a finite number$"):
        load_config(file, ["train.lr=x"])
    with pytest.raises(UserError, match=rf"^{file}: clients.partition.alpha: .*replace the section"):
        load_config(file, ["clients.partition.name=iid"])
    with pytest.raises(UserError, match=r"^command line: algorithm.mu: found -1; expected at least 0"):
        load_config(file, ["algorithm.mu=-1"])


def _fields(node: Any) -> list[tuple[str, Any]]:
    found = list(node.get("properties", {}).items()) if isinstance(node, dict) else []
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    return [*found, *(field for child in children for field in _fields(child))]


def test_schema_file_is_up_to_date() -> None:
    assert json.loads((CONFIGS / "schema.json").read_text()) == run_schema(), "run: python -m fedsim.configure"


def test_schema_describes_every_key() -> None:
    fields = [(name, field) for name, field in _fields(Config.model_json_schema()) if "$defs" not in str(name)]
    assert len(fields) > 50
    assert [name for name, field in fields if "description" not in field] == []


def test_schema_knows_the_methods_keys() -> None:
    rules = run_schema()["$defs"]["AlgorithmConfig"]["allOf"]
    keys = {rule["if"]["properties"]["name"]["const"]: set(rule["then"]["properties"]) for rule in rules}
    assert keys["fedprox"] == {"name", "mu"}
    assert keys["fedavg"] == {"name"}
