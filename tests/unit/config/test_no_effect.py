"""What has no effect is refused in one line: settings, and methods without what they are about.

A default is never refused, wherever it stands: a run's own config.yaml names every key and must load again.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.algorithms import METHODS
from fedsim.config.distill import load_distill_config
from fedsim.config.experiment import dump_config
from fedsim.configure import load_config
from fedsim.data.dataset import Source
from fedsim.data.splits import TEST, TRAIN, VAL, split
from fedsim.errors import UserError
from fedsim.machine.arithmetic import set_arithmetic
from fedsim.tasks.choose import task_of
from tests.helpers import BY_PRODUCTS, LORA, TINY_VIT, facts_of, make_config, make_dataset, make_simulation

RUN = """
name: small
rounds: 3
model: {name: packaged:vit_small_dino, lora: {r: 4}}
data: {name: digits}
clients: {count: 4, partition: {name: iid}}
train: {lr: 0.01}
"""
DISTILL = """
name: cut
model: {name: packaged:vit_small_dino, lora: {r: 4}}
data: {name: digits}
submodel: {intermediate_rank: 8}
"""
TEXTS = "data={name: rated_sentences}"
SEVERAL = "train={lr: 0.01, epochs: 2}"
UNALIGNED = "algorithm={name: fedpft, align_interval: null}"
RELEASED_NORM = "model.amplitude_norm={form: released}"
# What leaves the setting without effect, the setting, and the key that is blamed.
SETTINGS = [
    ([], "train.keep_optimizer=true", "train.keep_optimizer"),
    (["algorithm.name=fednova", "train.momentum=0.9"], "train.keep_optimizer=true", "train.keep_optimizer"),
    ([], "clients.sampling=volume", "clients.sampling"),
    (["clients.per_round=4"], "clients.sampling=volume", "clients.sampling"),
    (["clients.per_round=0.9"], "clients.sampling=volume", "clients.sampling"),
    (["clients.per_round=2", "clients.sampling=volume"], "clients.weighting=samples", "clients.weighting"),
    (["clients.sampling=multinomial"], "clients.weighting=samples", "clients.weighting"),
    (["algorithm.name=prrfl"], "algorithm.alpha1=0.6", "algorithm.alpha1"),
    (["algorithm.name=prrfl"], "algorithm.alpha2=0.8", "algorithm.alpha2"),
    (["algorithm.name=prrfl"], "algorithm.decide_on=train", "algorithm.decide_on"),
    (["algorithm.name=prrfl", "train.steps=5"], "algorithm.decide_on=train", "algorithm.decide_on"),
    (["algorithm.name=prrfl", SEVERAL], "algorithm.low_freq_start=0.96", "algorithm.low_freq_start"),
    (["algorithm={name: moon, mu: 0.0}"], "algorithm.temperature=0.1", "algorithm.temperature"),
    (["algorithm={name: fedsam, radius: 0.0}"], "algorithm.adaptive=true", "algorithm.adaptive"),
    ([UNALIGNED], "algorithm.retained_ratio=0.25", "algorithm.retained_ratio"),
    ([UNALIGNED], "algorithm.alpha=0.5", "algorithm.alpha"),
    ([UNALIGNED], "algorithm.distill={lr: 0.1}", "algorithm.distill"),
    ([UNALIGNED], "algorithm.form=released", "algorithm.form"),
    (["algorithm={name: fedpft, form: released}"], "algorithm.alpha=0.5", "algorithm.alpha"),
    ([], "data.root=/", "data.root"),
    ([TEXTS], "data.root=/", "data.root"),
    ([TEXTS], "data.image_size=56", "data.image_size"),
    ([RELEASED_NORM], "model.amplitude_norm.momentum=0.5", "model.amplitude_norm.momentum"),
    ([RELEASED_NORM], "model.amplitude_norm.low_freq_fraction=0.5", "model.amplitude_norm.low_freq_fraction"),
]


def written(folder: Path, text: str) -> Path:
    file = folder / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(("beside", "setting", "key"), SETTINGS, ids=[f"{s[2]}-{n}" for n, s in enumerate(SETTINGS)])
def test_a_setting_without_effect_is_refused_and_without_it_the_config_loads_again(
    beside: list[str], setting: str, key: str, tmp_path: Path
) -> None:
    file = written(tmp_path, RUN)
    with pytest.raises(UserError, match=rf"^command line: {key}: found [^\n]*; expected [^\n]*$"):
        load_config(file, [*beside, setting])
    config = load_config(file, beside) if setting != "clients.sampling=volume" else load_config(file)
    assert load_config(written(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize(
    "used",
    [
        ["train.keep_optimizer=true", "train.momentum=0.9"],
        ["train.keep_optimizer=true", "train.optimizer=adam"],
        ["train.keep_optimizer=true", "train.optimizer=adam", "algorithm.name=fednova"],
        ["clients.sampling=volume", "clients.per_round=3"],
        ["clients.sampling=multinomial"],
        ["algorithm={name: prrfl, alpha1: 0.6, alpha2: 0.8, decide_on: train}", SEVERAL],
        ["algorithm={name: prrfl, low_freq_start: 0.5, low_freq_end: 0.5}"],
        ["algorithm={name: moon, temperature: 0.1}"],
        ["algorithm={name: fedsam, adaptive: true}"],
        ["algorithm={name: fedpft, retained_ratio: 0.25, alpha: 0.5, distill: {lr: 0.1}}"],
        ["model.amplitude_norm={form: released, momentum: 1.0}"],
    ],
)
def test_a_setting_with_effect_is_taken_and_loads_again(used: list[str], tmp_path: Path) -> None:
    config = load_config(written(tmp_path, RUN), used)
    assert load_config(written(tmp_path, dump_config(config))) == config


def test_the_weight_of_an_error_without_gradient_is_refused_in_a_distillation(tmp_path: Path) -> None:
    file = written(tmp_path, DISTILL)
    assert load_distill_config(file, ["distill.form=released"]).distill.alpha == 0.01
    with pytest.raises(UserError, match=r"distill\.alpha: found 0\.5 with form: released"):
        load_distill_config(file, ["distill.form=released", "distill.alpha=0.5"])


def test_tf32_on_a_cpu_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.precision: found tf32 on a CPU"):
        set_arithmetic("tf32", True, torch.device("cpu"))


def test_absent_class_without_masks_is_refused() -> None:
    config = make_config(evaluate={"absent_class": "zero"})
    with pytest.raises(UserError, match=r"evaluate\.absent_class: found zero with made up, which has no masks"):
        task_of(make_dataset([8])[0], config)


@pytest.mark.parametrize(
    ("brought", "words", "key"),
    [
        ((VAL,), {"fractions": {"val": 0.1}}, "data.fractions.val"),
        ((TEST,), {"fractions": {"test": 0.1}}, "data.fractions.test"),
        ((VAL, TEST), {"fractions": {"val": 0.15, "test": 0.3}}, "data.fractions.test"),
        ((VAL, TEST), {"split_seed": 1}, "data.split_seed"),
        ((VAL,), {"fractions": {"test": 0.1}, "split_seed": 1}, None),
        ((TEST,), {"fractions": {"val": 0.1}, "split_seed": 1}, None),
        ((VAL, TEST), {"split_seed": 1, "max_train": 20}, None),
        ((VAL, TEST), {"fractions": {"val": 0.15, "test": 0.2}, "split_seed": 0}, None),
    ],
)
def test_words_about_drawing_a_split_that_the_set_brings(
    brought: tuple[int, ...], words: dict[str, Any], key: str | None
) -> None:
    labels = np.arange(60) % 2
    fixed = np.concatenate([np.full(40, TRAIN), np.resize(brought, 20)])
    source = Source(np.zeros((60, 1, 8, 8), np.uint8), labels, ("a", "b"), fixed=fixed)
    config = make_config(data={"image_size": 8, **words}).data
    if key is None:
        assert all(map(len, split(source, config)))
        return
    with pytest.raises(UserError, match=rf"^{key}: found .* with digits, which brings its .*no such key"):
        split(source, config)


# A method, a model that lacks what it is about, and how the refusal begins.
HEAD = {**TINY_VIT, "train": "head"}
PAIRS = ("fed_sb", "ravan", "la_lora", "med_duallora", "feddpa", "pf2lora")
METHODS_WITHOUT = [
    ("deer", HEAD, "model.lora: found null with algorithm.name: deer"),
    ("deer", {**TINY_VIT, "train": "all"}, "model.lora: found null with algorithm.name: deer"),
    ("ffa_lora", HEAD, "model.lora: found null with algorithm.name: ffa_lora"),
    ("ffa_lora", {**TINY_VIT, "train": "all"}, "model.lora: found null with algorithm.name: ffa_lora"),
    ("rolora", HEAD, "model.lora: found null with algorithm.name: rolora"),
    ("fedsa_lora", HEAD, "model.lora: found null with algorithm.name: fedsa_lora"),
    ("fedsvd", HEAD, "model.lora: found null with algorithm.name: fedsvd"),
    ("fedrot_lora", HEAD, "model.lora: found null with algorithm.name: fedrot_lora"),
    ("sfed_lora", HEAD, "model.lora: found null with algorithm.name: sfed_lora"),
    *((name, HEAD, "model.lora: found null with ") for name in sorted(BY_PRODUCTS)),
    *((name, HEAD, "model.lora: found null with ") for name in PAIRS),
    ("dp_dylora", HEAD, "model.lora: found null with algorithm.name: dp_dylora"),
    ("hetlora", {**TINY_VIT, "lora": LORA}, "model.lora.ranks: found null with algorithm.name: hetlora"),
    ("raflora", {**TINY_VIT, "lora": LORA}, "model.lora.ranks: found null with algorithm.name: raflora"),
    ("moon", HEAD, "algorithm.name: found moon on a model that trains ['head'], and no features"),
    ("fedrep", HEAD, "algorithm.name: found fedrep on a model that trains ['head']"),
    ("harmofl", HEAD, "model.amplitude_norm: found null with algorithm.name: harmofl"),
    ("fedpft", {**TINY_VIT, "lora": LORA}, "model.submodel: found none that names a folder"),
]
# These have no such thing, or say in their description what they are without it.
ABOUT_ANY_MODEL = {
    *("fedavg", "fedprox", "scaffold", "feddyn", "fednova", "fedadam", "fedyogi", "fedsam"),
    *("local", "ditto", "fedbn", "prrfl"),
}


@pytest.mark.parametrize(("method", "model", "message"), METHODS_WITHOUT)
def test_a_method_without_what_it_is_about_is_refused(method: str, model: dict[str, Any], message: str) -> None:
    config = make_config(algorithm={"name": method}, model=model, clients={"count": 1, "per_block": 1})
    with pytest.raises(UserError) as caught:
        make_simulation(config, *make_dataset([8]))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", sorted(ABOUT_ANY_MODEL))
def test_a_method_that_is_about_any_model_takes_a_head(method: str) -> None:
    config = make_config(algorithm={"name": method}, model=HEAD, clients={"count": 1, "per_block": 1})
    assert make_simulation(config, *make_dataset([8]))


def test_every_method_has_its_row() -> None:
    assert {row[0] for row in METHODS_WITHOUT} | ABOUT_ANY_MODEL == METHODS.keys()


def test_prrfl_without_matrices_is_refused() -> None:
    from fedsim.algorithms.prrfl import PRRFL
    from fedsim.models.specs import ParamSpec

    with pytest.raises(UserError, match=r"found prrfl on a model that trains \['logit_scale'\]"):
        PRRFL(PRRFL.Config(), facts_of({"logit_scale": ParamSpec((), "body")}))
