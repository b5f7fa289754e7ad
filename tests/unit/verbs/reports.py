"""Runs of a few seconds on three sites, and how their reports are read."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.table import Table

from fedsim import build, server
from fedsim.config.data import DataConfig
from fedsim.configure import load_config
from fedsim.data import Dataset
from fedsim.data.datasets import load_dataset
from fedsim.measure import report
from fedsim.runfolder.screen import make_console
from tests.distributed.runs import write_config
from tests.helpers import make_dataset

CONFIG = """
name: sited
seed: 3
rounds: 2
algorithm: {name: fedrep}
model:
  name: timm:vit_tiny_patch16_224
  weights: random
  options: {patch_size: 7, embed_dim: 16, depth: 1, num_heads: 2}
  lora: {r: 2}
data: {name: digits, image_size: 14}
clients: {count: 3, per_block: 2, partition: {name: sites}}
train: {lr: 0.05, batch_size: 16}
"""
SITES = ("north", "south", "west")


def sited(dataset: Dataset) -> Dataset:
    """Three hospitals, and patients of two images each."""
    number = np.arange(len(dataset.labels))
    return replace(dataset, sites=number % 3, site_names=SITES, groups=number // 2)


def own_data(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Let the config's digits be a set of three sites; sets from outside are read as they are."""
    own = sited(make_dataset([60])[0])

    def load(words: DataConfig, **options: Any) -> Dataset:
        return own if words.name == "digits" else load_dataset(words, **options)

    monkeypatch.setattr(build, "load_dataset", load)
    monkeypatch.setattr(report, "load_dataset", load)
    return own


def finished(folder: Path, *changes: str) -> dict[str, Any]:
    return server.run(load_config(write_config(folder, CONFIG), changes), folder / "run", resume=False)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def printed(parts: list[Table | str]) -> list[str]:
    console = make_console()
    console.width = 80
    with console.capture() as caught:
        for part in parts:
            if isinstance(part, Table):
                console.print(part)
    return caught.get().splitlines()
