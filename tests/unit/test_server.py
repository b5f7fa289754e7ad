"""Which round is the best, when to stop, and that a saved model measures as it did in training."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fedsim.configure import load_config
from fedsim.server import note_evaluation, out_of_patience, run
from fedsim.storage.checkpoint import Progress
from tests.distributed.runs import TINY, measured, write_config, write_masked_config


def outcomes(best_by: str, values: list[float]) -> tuple[list[bool], Progress]:
    progress = Progress()
    found = []
    for round, value in enumerate(values, start=1):
        record: Any = SimpleNamespace(row={"round": round, "val": {best_by: value}, "test": {best_by: -value}})
        found.append(note_evaluation(best_by, progress, record))
    return found, progress


@pytest.mark.parametrize(
    ("best_by", "values", "better", "best_round"),
    [
        ("accuracy", [0.5, 0.7, 0.7, 0.6], [True, True, False, False], 2),
        ("loss", [2.0, 1.0, 3.0], [True, True, False], 2),
        ("auroc", [math.nan, 0.4, math.nan], [False, True, False], 2),
    ],
)
def test_the_best_round(best_by: str, values: list[float], better: list[bool], best_round: int) -> None:
    found, progress = outcomes(best_by, values)
    assert found == better
    assert progress.best_round == best_round
    assert progress.best_metrics["test"] == {best_by: -values[best_round - 1]}


def test_patience_counts_evaluations_without_a_better_one() -> None:
    config: Any = SimpleNamespace(evaluate=SimpleNamespace(patience=2))
    assert not out_of_patience(config, outcomes("accuracy", [0.5, 0.4])[1])
    assert out_of_patience(config, outcomes("accuracy", [0.5, 0.4, 0.5])[1])
    config.evaluate.patience = None
    assert not out_of_patience(config, outcomes("accuracy", [0.5, 0.4, 0.5])[1])


def write_dylora_config(folder: Path) -> Path:
    return write_config(folder, TINY.replace("name: deer", "name: dp_dylora").replace("r: 2", "r: 4"))


@pytest.mark.parametrize("write", [write_config, write_masked_config, write_dylora_config])
def test_saved_models_measure_as_they_did_in_training(write: Callable[[Path], Path], tmp_path: Path) -> None:
    config = load_config(write(tmp_path))
    results = run(config, tmp_path / "run", resume=False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == list(range(1, config.rounds + 1))
    for which, round in (("best", results["best_round"]), ("last", config.rounds)):
        row = rows[round - 1]
        assert measured(tmp_path / "run", which) == {"val": row["val"], "test": row["test"]}


def test_predictions_are_drawn_for_images_with_masks(tmp_path: Path) -> None:
    run(load_config(write_masked_config(tmp_path), ["rounds=1"]), tmp_path / "run", resume=False)
    with Image.open(tmp_path / "run" / "predictions.png") as picture:
        width, height = picture.size
        assert (width, height > 3 * 100) == (1584, True)  # three sites, each a row of four images, masks, predictions
        colours = picture.convert("RGB").getcolors(1 << 24) or []
    # Masks are tinted blue over grey images.
    assert sum(number for number, (red, _, blue) in colours if blue > red + 40) > 1000


def test_a_finished_run_is_shown_again_not_trained_again(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path), ["rounds=1"])
    first = run(config, tmp_path / "run", resume=False)
    before = (tmp_path / "run" / "timings.jsonl").read_bytes()
    assert run(config, tmp_path / "run", resume=True) == first
    assert (tmp_path / "run" / "timings.jsonl").read_bytes() == before


LOCAL_STATE = """
name: kept
seed: 3
rounds: 4
algorithm: %s
model:
  name: timm:vit_tiny_patch16_224
  weights: random
  options: {patch_size: 7, embed_dim: 32, depth: 2, num_heads: 2}
  lora: {r: 2, lora_alpha: 4, target: [q, k, v]}
data: {name: digits, image_size: 14, max_train: 100}
clients: {count: 4, per_round: 1, per_block: 2, partition: {name: dirichlet, alpha: 5.0}}
train: {lr: 0.05, batch_size: 16, epochs: 2}
"""
KEEPING = [
    *("{name: local}", "{name: fedrep}", "{name: ditto}", "{name: moon}", "{name: prrfl, decide_on: train}"),
    *("{name: fedbn}", "{name: harmofl, share_target: never}", "{name: fedsa_lora}", "{name: sfed_lora}"),
]


@pytest.mark.parametrize("algorithm", KEEPING)
def test_measuring_changes_no_bit_of_training(algorithm: str, tmp_path: Path) -> None:
    """What was measured became the state that training went on from, so that newcomers started from it."""
    has_norms = "fedbn" in algorithm or "harmofl" in algorithm
    path = write_masked_config(tmp_path) if has_norms else write_config(tmp_path, LOCAL_STATE % algorithm)
    digests, losses = set(), set()
    for every in (1, 2, 4, 100):
        out = tmp_path / f"every-{every}"
        changes = [f"algorithm={algorithm}", "rounds=4", "clients.per_round=1"]
        changes += [f"evaluate.every={every}", f"evaluate.clients={str(every == 2).lower()}"]
        digests.add(run(load_config(path, changes), out, resume=False)["state_sha256"])
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.add(tuple(row["train_loss"] for row in rows))
    assert len(digests) == len(losses) == 1


def test_a_model_that_clients_hold_a_part_of_measures_the_same_from_its_checkpoints(tmp_path: Path) -> None:
    """``evaluate`` left out what only the clients hold."""
    out = tmp_path / "run"
    changes = ["evaluate.every=3", "rounds=4", "clients.per_round=2"]
    results = run(load_config(write_config(tmp_path, LOCAL_STATE % "{name: fedrep}"), changes), out, resume=False)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for which, round in (("best", results["best_round"]), ("last", 4)):
        assert measured(out, which) == {split: rows[round - 1][split] for split in ("val", "test")}


@pytest.mark.parametrize("algorithm", ["{name: deer}", "{name: fedrep}", "{name: fedsa_lora}"])
def test_the_exported_adapter_is_the_round_that_the_results_name(algorithm: str, tmp_path: Path) -> None:
    """The last round's was exported under the best round's figures."""
    out = tmp_path / "run"
    # The learning rate breaks the model after its first round, so that the best is not the last.
    changes = ["rounds=3", "train.lr=0.8", "train.momentum=0.9", "evaluate.best_by=loss"]
    results = run(load_config(write_config(tmp_path, LOCAL_STATE % algorithm), changes), out, resume=False)
    assert results["best_round"] < 3
    for name, round in (("adapter", results["best_round"]), ("adapter_last", 3)):
        about = json.loads((out / name / "about.json").read_text())
        row = json.loads((out / "metrics.jsonl").read_text().splitlines()[round - 1])
        assert (about["round"], about["best_by"]) == (round, "loss")
        assert (about["val"], about["test"]) == (row["val"], row["test"])
        assert about["class_names"] == [str(digit) for digit in range(10)]
        assert about["inputs"] == {"size": 14, "fit": "stretch", "mean": [0.5] * 3, "std": [0.5] * 3}
    best, last = (load_file(out / name / "adapter_model.safetensors") for name in ("adapter", "adapter_last"))
    saved = load_file(out / f"checkpoints/best-{results['best_round']:06d}/server.safetensors")
    factor = saved["params/blocks.0.attn.qkv.lora_a"].flatten(0, 1)
    found = next(value for name, value in best.items() if "blocks.0.attn.qkv" in name and "lora_A" in name)
    assert torch.equal(found, factor)
    assert any(not torch.equal(best[name], last[name]) for name in best)


def test_the_exported_adapter_has_the_rank_that_validation_chose(tmp_path: Path) -> None:
    out = tmp_path / "run"
    results = run(load_config(write_dylora_config(tmp_path), ["train.epochs=2"]), out, resume=False)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    best = results["best_round"]
    rank = rows[best - 1]["diagnostics"]["rank"]
    assert rank in (1, 2, 4)
    factor = load_file(out / f"checkpoints/best-{best:06d}/server.safetensors")["params/blocks.0.attn.qkv.lora_a"]
    adapter = load_file(out / "adapter" / "adapter_model.safetensors")
    found = next(value for name, value in adapter.items() if "blocks.0.attn.qkv" in name and "lora_A" in name)
    expected = torch.zeros_like(factor)
    expected[:, :rank] = factor[:, :rank] * math.sqrt(4 / rank)
    torch.testing.assert_close(found, expected.flatten(0, 1))
