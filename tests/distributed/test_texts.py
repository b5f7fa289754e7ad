"""Texts under torchrun: the same bits on any number of ranks, and the same metrics in launch.py evaluate."""

import json
from pathlib import Path

import pytest

from tests.distributed.runs import launch, results, same_log, write_config
from tests.unit.models.models_hugging_folders import WORDS, write_hugging

CONFIG = """
name: texts
seed: 3
rounds: 2
model: {{name: "hf:{folder}/bert", lora: {{r: 2, lora_alpha: 4, target: [q, k, v]}}}}
data: {{name: text_files, root: "{folder}/tables", columns: {{label: label, site: site}}}}
clients: {{count: 6, per_block: 2, partition: {{name: sites}}}}
train: {{lr: 0.05, momentum: 0.9, batch_size: 4}}
"""


@pytest.mark.slow
def test_any_number_of_ranks_gives_the_same_bits(tmp_path: Path) -> None:
    write_hugging(tmp_path / "bert")
    (tmp_path / "tables").mkdir()
    rows = [
        {"text": " ".join(WORDS[(number * step) % 8] for step in range(1, 2 + number % 7)), "site": number % 3}
        | {"label": ("low", "high")[number % 8 > 3]}
        for number in range(120)
    ]
    (tmp_path / "tables" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = write_config(tmp_path, CONFIG.format(folder=tmp_path))
    for ranks in (0, 2, 3):
        done = launch(ranks, "run", config, "--out", tmp_path / str(ranks))
        assert done.returncode == 0, done.stderr
    alone, *others = (tmp_path / str(ranks) for ranks in (0, 2, 3))
    for other in others:
        assert results(other)["state_sha256"] == results(alone)["state_sha256"]
        assert same_log(other, alone)
    assert (alone / "adapter" / "adapter_model.safetensors").is_file()
    done = launch(0, "evaluate", alone)
    assert done.returncode == 0, done.stderr
    assert f"{results(alone)['test']['accuracy']:.4f}" in done.stdout
