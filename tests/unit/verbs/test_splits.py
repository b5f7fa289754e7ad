"""The benchmark: published digests hold here, others are told, and reruns have the same bits."""

from pathlib import Path
from typing import Any

import pytest

from fedsim import server
from fedsim.configure import load_config
from fedsim.errors import UserError
from fedsim.storage.rows import read_object
from fedsim.verbs.splits import FILE_NAME, SEEDS, describe, publish, read_published
from tests.unit.verbs.test_commands import invoke

BENCH = Path(__file__).resolve().parents[3] / "configs" / "bench"
PUBLISHED = read_published(BENCH / FILE_NAME)
TINY = """
name: tiny
rounds: 2
model:
  name: timm:vit_tiny_patch16_224
  weights: random
  options: {patch_size: 7, embed_dim: 32, depth: 2, num_heads: 2}
  lora: {r: 4}
data: {name: digits, image_size: 14, max_train: 100}
clients: {count: 4, partition: {name: dirichlet, alpha: 1.0}}
train: {lr: 0.05, batch_size: 16}
"""


def write_config(folder: Path) -> Path:
    (folder / "tiny.yaml").write_text(TINY)
    return folder / "tiny.yaml"


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_splits_are_those_here(name: str) -> None:
    rows = describe([BENCH / f"{name.removeprefix('bench_')}.yaml"], (), SEEDS)
    assert rows == [(f"{name} seed {seed}", "as published") for seed in SEEDS]


def test_every_packaged_set_is_published() -> None:
    packaged = ("brain_mri", "cells", "dermoscopy_pairs", "rated_sentences")
    names = {f"bench_{path.stem}" for path in BENCH.glob("*.yaml") if path.stem.startswith(packaged)}
    assert names == PUBLISHED.keys()
    assert all(own.keys() == {str(seed) for seed in SEEDS} for own in PUBLISHED.values())
    assert {path.name for path in BENCH.glob("*.yaml")} == {path.name for path in (BENCH / "sweeps").glob("*.yaml")}


def test_a_split_that_differs_is_one_line(tmp_path: Path) -> None:
    file = write_config(tmp_path)
    shown = invoke("splits", file, "--seed", 3)
    assert shown.exit_code == 0, shown.output
    assert "not published" in shown.stdout
    assert "validation" in shown.stdout
    assert invoke("splits", file, "--seed", 3, "--seed", 4, "--publish").exit_code == 0
    assert "tiny seed 4  as published" in invoke("splits", file, "--seed", 3, "--seed", 4).stdout
    for key, change in (("validation", "data.split_seed=1"), ("clients", "clients.partition.alpha=0.5")):
        done = invoke("splits", file, "--seed", 4, "--set", change)
        assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert f"splits.json: tiny, seed 4: {key}: found sha256 " in done.stderr
    done = invoke("splits", file, "--publish", "--set", "data.split_seed=1")
    assert done.exit_code == 2


def test_with_a_clock_cohorts_are_not_told(tmp_path: Path) -> None:
    """They follow from what a method sends, too."""
    file = write_config(tmp_path)
    publish([file], [3])
    rows = describe([file], ["clock={example_seconds: 1.0, aggregation: {name: synchronous}}"], [3])
    assert rows[0] == ("tiny seed 3", "as published")
    assert rows[1][0].strip() == "cohorts"
    assert rows[1][1].startswith("not told")


def test_a_run_writes_the_digests_that_are_published_and_again_the_same_bits(tmp_path: Path) -> None:
    file = write_config(tmp_path)
    publish([file], [5])
    first, second = (server.run(load_config(file, ["seed=5"]), tmp_path / name, False) for name in "ab")
    assert first["state_sha256"] == second["state_sha256"]
    for name in ("metrics.jsonl", "clients.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    table: Any = read_object(tmp_path / "a" / "partition.json")
    assert table["sha256"] == read_published(tmp_path / FILE_NAME)["tiny"]["5"]


@pytest.mark.parametrize("content", ["[]", '{"schema": 2, "splits": {}}', '{"schema": 1, "splits": {"a": []}}'])
def test_a_file_of_digests_that_is_none_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(UserError, match=FILE_NAME):
        read_published(tmp_path / FILE_NAME)


def test_what_is_published_is_sha256() -> None:
    for own in PUBLISHED.values():
        for found in own.values():
            assert found.keys() == {"data", "validation", "test", "clients", "cohorts"}
            assert all(len(value) == 64 and int(value, 16) >= 0 for value in found.values())
