"""A run that begins where another has ended."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedsim import server
from fedsim.build import build_simulation
from fedsim.comm.group import open_group
from fedsim.config.experiment import Config
from fedsim.configure import load_config
from fedsim.errors import UserError
from fedsim.runfolder.saved import open_saved
from fedsim.runfolder.start import first_state
from fedsim.verbs.taken_out.export import export_run
from tests.distributed.runs import write_config
from tests.helpers import same_bits

FEW = ["data.max_train=60", "clients.count=3", "clients.partition.alpha=10", "data.fractions={val: 0.05, test: 0.05}"]
FEDAVG = "algorithm={name: fedavg}"


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config, and the folder of a finished run of two rounds."""
    folder = tmp_path_factory.mktemp("before")
    file = write_config(folder)
    server.run(load_config(file, [*FEW, "rounds=2"]), folder / "run", False)
    return file, folder / "run"


def config_from(before: tuple[Path, Path], *changes: str, folder: Path | None = None) -> Config:
    return load_config(before[0], [*FEW, f"model.start_from={folder or before[1]}", *changes])


def first(config: Config) -> Any:
    with open_group() as group:
        return first_state(build_simulation(config, group))


def test_the_first_state_has_the_other_runs_best_parameters(before: tuple[Path, Path]) -> None:
    with open_saved(before[1], "best") as saved:
        expected, fresh = saved.params, saved.sim.initial_state().params
    state = first(config_from(before, FEDAVG, "train.optimizer=adam", "train.momentum=0.0", "name=other"))
    assert state.round == 0
    assert same_bits(state.params, expected)
    assert not torch.equal(state.params["head.weight"], fresh["head.weight"])
    # A server that changes the frozen weights begins with no change.
    shifted = first(config_from(before, "algorithm={name: fedex_lora}")).params
    assert all(not value.any() for name, value in shifted.items() if name not in expected)
    assert same_bits({name: shifted[name] for name in expected}, expected)


def test_more_rounds_go_on_from_there_and_resume(before: tuple[Path, Path], tmp_path: Path) -> None:
    config = config_from(before, FEDAVG, "rounds=2")
    whole = server.run(config, tmp_path / "whole", False)
    one = config_from(before, FEDAVG, "rounds=2", "checkpoint.every=1")
    server.run(one, tmp_path / "again", False)
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    alone = server.run(load_config(before[0], [*FEW, FEDAVG, "rounds=2"]), tmp_path / "alone", False)
    assert whole["state_sha256"] != alone["state_sha256"]
    ended = json.loads((before[1] / "results.json").read_text())["val"]["loss"]
    fresh = json.loads((tmp_path / "alone/metrics.jsonl").read_text().splitlines()[0])["val"]["loss"]
    assert abs(rows[0]["val"]["loss"] - ended) < abs(fresh - ended)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (["seed=4"], r"a run with seed: 3; expected one with seed: 4, as here"),
        (["model.lora.r=3"], r"a run with model\.lora: .*expected one with model\.lora: "),
        (["data.image_size=28"], r"a run with data\.image_size: 14; expected one with data\.image_size: 28"),
        (["model={name: 'timm:test_resnet', weights: random, train: head, start_from: %s}"], r"a run with model\.name"),
    ],
)
def test_another_model_is_refused(before: tuple[Path, Path], changes: list[str], found: str) -> None:
    words = [FEDAVG, *(change % before[1] if "%s" in change else change for change in changes)]
    with pytest.raises(UserError, match=found):
        first(config_from(before, *words))


def test_other_folders_are_refused(before: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"command line: model\.start_from"):
        config_from(before, folder=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"config\.yaml"):
        first(config_from(before, folder=tmp_path / "empty"))
    copy = Path(shutil.copytree(before[1], tmp_path / "copy"))
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("name: deer", "name: some.Method", 1))
    with pytest.raises(UserError, match="code that the run folder names"):
        first(config_from(before, folder=copy))
    (copy / "config.yaml").write_text(text)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint"):
        first(config_from(before, folder=copy))


def test_an_adapter_is_where_a_run_begins(before: tuple[Path, Path]) -> None:
    """The folder that the run itself has written; its base weights need no data."""
    with open_saved(before[1], "best") as saved:
        expected = saved.params
    found = first(config_from(before, FEDAVG, folder=before[1] / "adapter")).params
    assert same_bits(found, expected)


def test_one_pair_for_all_slices_as_peft_makes_it_is_read(before: tuple[Path, Path], tmp_path: Path) -> None:
    """With half of the scale, and no classifier."""
    folder = tmp_path / "peft"
    shutil.copytree(before[1] / "adapter", folder)
    (folder / "head.safetensors").unlink()
    words = json.loads((folder / "adapter_config.json").read_text())
    state = load_file(folder / "adapter_model.safetensors")
    half = {name: value[:2] if "lora_A" in name else value[:, :2] + 1.0 for name, value in state.items()}
    save_file({name: value.contiguous() for name, value in half.items()}, folder / "adapter_model.safetensors")
    words |= {"r": 2, "lora_alpha": words["lora_alpha"] / words["r"], "rank_pattern": {}, "alpha_pattern": {}}
    (folder / "adapter_config.json").write_text(json.dumps(words))
    with open_group() as group:
        sim = build_simulation(config_from(before, FEDAVG, folder=folder), group)
        state = first_state(sim)
    path = "blocks.0.attn.qkv"
    a, b = (half[f"base_model.model.{path}.lora_{letter}.weight"] for letter in "AB")
    for place in range(3):
        assert torch.equal(state.params[f"{path}.lora_a"][place], a)
        assert torch.equal(state.params[f"{path}.lora_b"][place], b.unflatten(0, (3, -1))[place] / 2)
    assert torch.equal(state.params["head.weight"], sim.initial_state().params["head.weight"])


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (["model.lora.r=3", "model.lora.lora_alpha=6.0"], r"with factors .* of rank 3"),
        (["model.lora.target=[q]"], r"found .*adapter with "),
        (["model.lora.target=[q, k, v, fc1]"], r"without base_model\.model\.blocks\.0\.mlp\.fc1\.lora_A"),
        (
            ["model={name: 'timm:test_resnet', weights: random, train: head, start_from: %s}"],
            "fit runs with",
        ),
    ],
)
def test_an_adapter_of_other_layers_is_refused(before: tuple[Path, Path], changes: list[str], found: str) -> None:
    folder = before[1] / "adapter"
    words = [FEDAVG, *(change % folder if "%s" in change else change for change in changes)]
    with pytest.raises(UserError, match=found):
        first(config_from(before, *words, folder=folder))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("init_lora_weights", init) for init in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga")),
        ("bias", "all"),
        ("use_qalora", True),
        ("alora_invocation_tokens", [1]),
    ],
)
def test_an_adapter_that_is_more_than_factors_is_refused(
    key: str, value: object, before: tuple[Path, Path], tmp_path: Path
) -> None:
    """With pissa and its like peft takes a part of the base weights away when it loads the factors."""
    shutil.copytree(before[1] / "adapter", tmp_path / "peft")
    file = tmp_path / "peft/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(UserError, match=rf"an adapter with {key}.*; expected one of plain LoRA factors"):
        first(config_from(before, FEDAVG, folder=tmp_path / "peft"))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("seed=4", "an adapter for seed 3; expected 4, as here"),
        ("data.image_size=21", "an adapter for size 14; expected 21, as here"),
        ("model.name=timm:vit_tiny_patch16_384", "an adapter for model 'timm:vit_tiny_patch16_224'; expected 'timm:vi"),
    ],
)
@pytest.mark.parametrize("file", ["about.json", "card.json"])
def test_an_adapter_for_another_network_is_refused(
    change: str, found: str, file: str, before: tuple[Path, Path], tmp_path: Path
) -> None:
    if file == "card.json":
        export_run(before[1], "adapter", "best", tmp_path / "peft")
    else:
        shutil.copytree(before[1] / "adapter", tmp_path / "peft")
    with pytest.raises(UserError, match=found):
        first(config_from(before, FEDAVG, change, folder=tmp_path / "peft"))


def test_an_adapter_for_weights_of_a_file_fits_no_others(before: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(before[1] / "adapter", tmp_path / "peft")
    file = tmp_path / "peft/about.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"frozen_sha256": "0" * 64}))
    with pytest.raises(UserError, match=r"an adapter for frozen_sha256 '0000.*; expected null, as here"):
        first(config_from(before, FEDAVG, folder=tmp_path / "peft"))


@pytest.mark.parametrize("method", ["ravan", "fed_sb", "sfed_lora", "dp_dylora", "feddpa"])
def test_methods_that_remake_factors_begin_with_their_own(before: tuple[Path, Path], method: str) -> None:
    """Each would begin with another network than the run's, and than the library's without a part of its weights."""
    name = [f"algorithm={{name: {method}}}", "model.lora.r=4"]
    with pytest.raises(UserError, match=rf"model\.start_from: found .* with {method}, which "):
        first(config_from(before, *name))
    fresh = [*FEW, *name, "model.start_from=null"]
    for init in ("pissa", "olora", "orthogonal"):
        with pytest.raises(UserError, match=rf"init_lora_weights: found {init} with {method}, which "):
            first(load_config(before[0], [*fresh, f"model.lora.init_lora_weights={init}"]))
    first(load_config(before[0], [*fresh, "model.lora.init_lora_weights=gaussian"]))
    with_rslora = load_config(before[0], [*fresh, "model.lora.use_rslora=true"])
    if method in ("sfed_lora", "dp_dylora"):
        with pytest.raises(UserError, match=rf"use_rslora: found true with {method}, whose update has a scale of its"):
            first(with_rslora)
    else:
        first(with_rslora)


def test_a_run_whose_best_rank_was_chosen_is_no_beginning(before: tuple[Path, Path], tmp_path: Path) -> None:
    """The ranks beyond it are zero in both factors, and would never learn."""
    server.run(load_config(before[0], [*FEW, "algorithm={name: dp_dylora}", "rounds=1"]), tmp_path / "run", False)
    with pytest.raises(UserError, match=r"a run with dp_dylora; expected .*best rank lacks the others"):
        first(config_from(before, FEDAVG, folder=tmp_path / "run"))


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_is_not_put_beside_weights_that_lack_a_part(before: tuple[Path, Path], init: str) -> None:
    words = [FEDAVG, f"model.lora.init_lora_weights={init}"]
    with pytest.raises(UserError, match=rf"an adapter, .* with model\.lora\.init_lora_weights: {init}"):
        first(config_from(before, *words, folder=before[1] / "adapter"))
