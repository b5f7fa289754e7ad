"""flwr-datasets' names of partitions: ours under another name, or one line that says what to write in place."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.configure import load_config, run_schema
from fedsim.data import partition_clients
from fedsim.errors import UserError
from tests.helpers import make_config, make_dataset

SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"name": "IidPartitioner"}, {"name": "iid"}),
    (
        {"name": "DirichletPartitioner", "alpha": 0.5, "min_partition_size": 3},
        {"name": "dirichlet", "alpha": 0.5, "min_size": 3},
    ),
    ({"name": "DirichletPartitioner", "alpha": 1.0}, {"name": "dirichlet", "alpha": 1.0, "min_size": 10}),
    ({"name": "ShardPartitioner", "num_shards_per_partition": 2}, {"name": "shards", "per_client": 2}),
    ({"name": "NaturalIdPartitioner"}, {"name": "column"}),
]


@pytest.mark.parametrize(("theirs", "ours"), SAME)
def test_their_name_is_our_partition(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    one, other = (make_config(clients={"count": 4, "partition": words}) for words in (theirs, ours))
    assert one == other
    if ours["name"] != "column":
        dataset, _ = make_dataset([120])
        found, expected = (partition_clients(dataset, config.clients, 3) for config in (one, other))
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_drawn_partition_is_as_uneven_as_theirs() -> None:
    """Theirs draws a Dirichlet for each class and cuts it there: the counts' mean and spread follow from alpha alone.

    Of one class with n images a client's count has the mean n / K and the variance n^2 (K - 1) / (K^2 (K alpha + 1)),
    but for less than one image where it is cut.
    """
    dataset, _ = make_dataset([900])
    words = {"name": "DirichletPartitioner", "alpha": 0.3, "min_partition_size": 0}
    config = make_config(clients={"count": 5, "partition": words})
    labels = dataset.labels.numpy()
    found = [
        np.bincount(labels[part], minlength=3)
        for seed in range(150)
        for part in partition_clients(dataset, config.clients, seed)
    ]
    counts = np.bincount(labels[dataset.train], minlength=3)
    shares = np.array(found).reshape(150, 5, 3) / counts
    assert shares.mean(0) == pytest.approx(np.full((5, 3), 0.2), abs=0.06)
    assert shares.var((0, 1)) == pytest.approx(np.full(3, 0.2 * 0.8 / (5 * 0.3 + 1)), rel=0.12)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{name: PathologicalPartitioner}", "partition.name: found PathologicalPartitioner; expected diversity, in wh"),
        ("{name: LinearPartitioner}", "partition.name: found LinearPartitioner; expected file, which says what each"),
        ("{name: DirichletPartitoner}", "partition.name: found 'DirichletPartitoner'; expected dirichlet"),
        ("{name: IiddPartitioner}", r"partition.name: found IiddPartitioner; expected IidPartitioner \(nearest"),
        ("{name: IidPartitioner, num_partitions: 4}", "num_partitions: found 4 with .*; expected clients.count in its"),
        ("{name: IidPartitioner, seed: 42}", "partition.seed: found 42 with name: IidPartitioner; expected the run's"),
        (
            "{name: DirichletPartitioner, alpha: 0.5, self_balancing: true}",
            "partition.self_balancing: found true with name: DirichletPartitioner; expected no such key",
        ),
        (
            "{name: DirichletPartitioner, alpha: 0.5, partition_by: label}",
            "partition.partition_by: found 'label' with .*; expected no such key: it goes by the label",
        ),
        ("{name: DirichletPartitioner, alpha: [0.5, 0.1]}", "partition.alpha: found .*; expected a finite number"),
        ("{name: DirichletPartitioner}", "partition.alpha: found nothing"),
        ("{name: DirichletPartitioner, beta: 1}", "partition.beta: found 1 with .*; expected one of: alpha, min_par"),
        ("{name: ShardPartitioner, shard_size: 20}", "partition.shard_size: found 20 .*; expected num_shards_per_part"),
        ("{name: NaturalIdPartitioner, partition_by: site}", "partition_by: found 'site' .*; expected data.columns.cl"),
    ],
)
def test_what_is_not_the_same_is_one_line(tmp_path: Path, words: str, message: str) -> None:
    (tmp_path / "run.yaml").write_text(
        "name: small\nrounds: 1\nmodel: {name: packaged:vit_small_dino, lora: {r: 4}}\ndata: {name: digits}\n"
        f"clients: {{count: 4, partition: {words}}}\ntrain: {{lr: 0.01}}\n"
    )
    with pytest.raises(UserError, match=message) as caught:
        load_config(tmp_path / "run.yaml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'run.yaml'}: clients.partition")


def test_an_editor_takes_both() -> None:
    both = run_schema()["$defs"]["ClientsConfig"]["properties"]["partition"]["anyOf"]
    assert "IidPartitioner" in both[1]["properties"]["name"]["enum"]
    assert "iid" in both[0]["discriminator"]["mapping"]
