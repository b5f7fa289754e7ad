"""``launch.py distill`` in this process: its folder, its rows, going on and showing, and its mistakes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

import launch
from fedsim.comm.group import open_group
from fedsim.config.distill import DistillConfig, distill_schema, load_distill_config
from fedsim.config.experiment import dump_config
from fedsim.configure import CONFIGS
from fedsim.errors import UserError
from fedsim.models.encoders import load_encoder
from fedsim.models.submodel.folder import Submodel, load_submodel, make_submodel
from fedsim.storage.rows import Table
from fedsim.verbs.distill import CHECKPOINT_FILE, build_job, run
from tests.helpers import LORA, TINY_VIT, same_bits

WORDS: dict[str, Any] = {
    "name": "half",
    "seed": 3,
    "model": {**TINY_VIT, "lora": LORA},
    "data": {"name": "digits", "image_size": 14, "max_train": 100, "fractions": {"val": 0.02, "test": 0.02}},
    "submodel": {"layers_retained": [1], "intermediate_rank": 64},
    "distill": {"epochs": 2, "batch_size": 32, "micro_batch": 8, "lr": 0.01},
}


def make_config(**distill: Any) -> DistillConfig:
    return DistillConfig.model_validate({**WORDS, "distill": {**WORDS["distill"], **distill}})


def rows(folder: Path, table: str = "distillation") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{table}.jsonl").read_text().splitlines()]


def load(folder: Path) -> tuple[Submodel, Submodel]:
    """The folder's sub-model, and the one that the distillation began with."""
    config = load_distill_config(folder / "config.yaml")
    tower = load_encoder(config.model, 14, ["x"], config.seed).tower
    assert tower is not None
    return load_submodel(folder, tower.blocks, "here"), make_submodel(config, tower.blocks)


def test_a_distillation_leaves_its_folder(tmp_path: Path) -> None:
    facts = run(make_config(), tmp_path / "half", resume=False)
    assert {path.name for path in (tmp_path / "half").iterdir()} == {
        *("config.yaml", "environment.json", "distillation.jsonl", "timings.jsonl", "exit_code"),
        *("submodel.json", "submodel.safetensors"),
    }
    assert [row["step"] for row in rows(tmp_path / "half")] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert all(row.keys() == {"step", "loss", "states", "products", "lr"} for row in rows(tmp_path / "half"))
    assert all(row["seconds"] > 0 for row in rows(tmp_path / "half", "timings"))
    error = facts["error"]
    assert 0 < error["after"]["states"] < error["before"]["states"]
    assert facts["steps"] == 8
    found, begun = load(tmp_path / "half")
    assert found.tensors.keys() == begun.tensors.keys()
    assert found.neurons.keys() == {0}
    assert not any(torch.equal(found.tensors[name], begun.tensors[name]) for name in begun.tensors)


def test_no_epochs_make_the_undistilled_sub_model(tmp_path: Path) -> None:
    facts = run(make_config(epochs=0), tmp_path / "half", resume=True)
    assert facts["error"]["after"] == facts["error"]["before"]
    assert facts["steps"] == 0
    found, begun = load(tmp_path / "half")
    assert same_bits(found.tensors, begun.tensors)


def times(folder: Path) -> dict[Path, int]:
    """When each file was written, but for the one that every start writes."""
    return {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "exit_code"}


def test_a_finished_distillation_is_shown_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = run(make_config(epochs=0), tmp_path / "half", resume=False)
    before = times(tmp_path / "half")
    capsys.readouterr()
    assert run(make_config(epochs=0), tmp_path / "half", resume=True) == facts
    assert f"model.submodel: {{folder: {tmp_path / 'half'}}}" in capsys.readouterr().out
    assert times(tmp_path / "half") == before


def test_a_folder_in_use_and_another_distillation_s(tmp_path: Path) -> None:
    run(make_config(epochs=0), tmp_path / "half", resume=False)
    with pytest.raises(UserError, match="a folder that is in use"):
        run(make_config(epochs=0), tmp_path / "half", resume=False)
    with pytest.raises(UserError, match=r"--resume: distill.lr: found 0.5; expected 0.01 as in"):
        run(make_config(epochs=0, lr=0.5), tmp_path / "half", resume=True)


class StopError(Exception):
    """What stands in for a kill."""


def test_an_interrupted_distillation_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    facts = run(make_config(), whole, resume=False)

    def append_and_stop(self: Table, new: Any) -> None:
        append(self, new)
        # One row is in the log that no checkpoint covers, and a torn one behind it.
        if "loss" in new[0] and new[0]["step"] == 6:
            with (broken / "distillation.jsonl").open("ab") as file:
                file.write(b'{"step": 7, "lo')
            raise StopError

    append = Table.append
    monkeypatch.setattr(Table, "append", append_and_stop)
    with pytest.raises(StopError):
        run(make_config(), broken, resume=False)
    monkeypatch.undo()
    assert json.loads((broken / CHECKPOINT_FILE).read_text())["step"] == 5
    assert run(make_config(), broken, resume=True) == facts
    for name in ("distillation.jsonl", "submodel.safetensors", "submodel.json"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert not list(broken.glob("checkpoint*"))


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.yaml").write_text(dump_config(make_config()))
    (tmp_path / "half" / CHECKPOINT_FILE).write_text('{"format": 2, "file": "checkpoint-000001.safetensors"}')
    with pytest.raises(UserError, match=r"checkpoint.json: found a record that was changed or damaged"):
        run(make_config(), tmp_path / "half", resume=True)


def write_table(folder: Path, names: str, *lines: str) -> str:
    folder.mkdir()
    (folder / "train.tsv").write_text("\n".join([names, *lines]) + "\n")
    return str(folder)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("submodel.layers_retained=[2]", "submodel.layers_retained: found 2; expected layers from 0 to 1"),
        ("submodel.layers_retained=[0, 1]", "submodel.layers_retained: found all 2 layers; expected one"),
        ("submodel.layers_retained=[0, 0]", "submodel.layers_retained: found [0, 0]; expected each block once"),
        ("submodel.intermediate_rank=129", "submodel.intermediate_rank: found 129; expected from 1 to the 128 neurons"),
        ("submodel.intermediate_rank=0", "submodel.intermediate_rank: found 0; expected at least 1"),
        ("distill.batch_size=4", "distill.micro_batch: found 8 with batch_size: 4; expected at most that"),
        ("model.lora=null", "model.lora: found null; expected a lora section"),
        ("model.submodel={folder: half}", "model.submodel: found a sub-model; expected null"),
        ("data.augment=[flip]", "data.augment: found ['flip']; expected none"),
        ("distill.epoch=3", "distill.epoch: found an unknown key; expected epochs (nearest"),
        ("name=..", "name: found '..'; expected a text that matches"),
        (
            "model={name: 'timm:resnet18', weights: random, lora: {}}",
            "model.name: found timm:resnet18, which is no plain",
        ),
        (
            "model={name: 'timm:vit_giant_patch14_reg4_dinov2', weights: random, lora: {}, "
            "options: {patch_size: 7, depth: 2, embed_dim: 32, num_heads: 2}}",
            "layer 0 of the model: found no feed-forward among attn.qkv (32 -> 96), ",
        ),
        (
            "data={name: text_files, root: EMPTY, columns: {label: label}}",
            "data EMPTY: found an empty set; expected images",
        ),
    ],
)
def test_every_mistake_is_one_line(tmp_path: Path, override: str, message: str) -> None:
    empty = write_table(tmp_path / "empty", "text\tlabel")
    path = tmp_path / "half.yaml"
    path.write_text(yaml.safe_dump(WORDS))
    arguments = ["distill", str(path), override.replace("EMPTY", empty), "--out", str(tmp_path / "half")]
    result = CliRunner().invoke(launch.app, arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert message.replace("EMPTY", empty) in line
    assert line.startswith("error: ")


def test_ranks_share_a_distillation_s_job_by_nothing_but_their_number() -> None:
    with open_group() as group:
        one, other = build_job(make_config(), group), build_job(make_config(), group)
    assert one.model_sha256 == other.model_sha256
    assert same_bits(one.distiller.state(), other.distiller.state())


def test_schema() -> None:
    assert json.loads((CONFIGS / "schema_distill.json").read_text()) == distill_schema(), (
        "run: python -m fedsim.configure"
    )
