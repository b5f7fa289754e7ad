"""The same bits on any number of ranks, with real torchrun over gloo."""

import pytest

from tests.distributed.runs import launch, results, same_log, write_config, write_masked_config
from tests.unit.data.datasets.test_data_medmnist_3d import write_volumes

CASES = {
    "deer": [],
    "fedavg": ["algorithm.name=fedavg"],
    "fedprox": ["algorithm.name=fedprox", "algorithm.mu=0.1"],
    "fraction of the clients": ["clients.per_round=0.4", "clients.sampling=volume"],
    "kept optimisers": ["algorithm.name=fedavg", "train.keep_optimizer=true", "clients.per_round=4"],
    "augmented": ["data.augment=[flip, crop]"],
    "whole network": [
        "algorithm.name=fedavg",
        "model={name: 'timm:vit_tiny_patch16_224', weights: random, "
        "options: {patch_size: 7, embed_dim: 16, depth: 1, num_heads: 2}}",
    ],
    "prrfl": [
        "algorithm={name: prrfl, decide_on: train}",
        "train.epochs=2",
        "evaluate={every: 2, clients: true}",
        "clients.per_round=5",
    ],
    "prrfl, whole network with BatchNorm": [
        "algorithm={name: prrfl, decide_on: val}",
        "model={name: 'timm:test_resnet', weights: random}",
        "clients.partition={name: iid}",
    ],
    "fedbn": [
        "algorithm.name=fedbn",
        "model={name: 'timm:test_resnet', weights: random}",
        "clients.partition={name: iid}",
        "evaluate.clients=true",
    ],
    "ditto": ["algorithm.name=ditto", "evaluate.clients=true", "clients.per_round=4"],
    "fedrep": ["algorithm.name=fedrep", "evaluate.clients=true", "clients.per_round=4"],
    "local": ["algorithm.name=local", "evaluate.clients=true", "clients.per_round=4"],
    "harmofl": [
        "algorithm.name=harmofl",
        "model.amplitude_norm={}",
        "train.keep_optimizer=true",
        "clients.per_round=5",
        "rounds=3",
    ],
    "harmofl, whole network with BatchNorm, targets of their own": [
        "algorithm={name: harmofl, share_target: never}",
        "model={name: 'timm:test_resnet', weights: random, amplitude_norm: {form: released}}",
        "train={lr: 0.01, optimizer: adam, batch_size: 8}",
        "clients.partition={name: iid}",
        "evaluate.clients=true",
    ],
    "rolora": ["algorithm.name=rolora"],
    "fedsa_lora": ["algorithm.name=fedsa_lora", "evaluate.clients=true", "clients.per_round=4"],
    "fedsvd": ["algorithm.name=fedsvd"],
    "fedrot_lora": ["algorithm={name: fedrot_lora, strength: 1.0}"],
    "sfed_lora": ["algorithm.name=sfed_lora", "evaluate.clients=true", "clients.per_round=4"],
    "dp_dylora": ["algorithm.name=dp_dylora", "train.epochs=2"],
    "fednova": ["algorithm.name=fednova"],
    "fedyogi": ["algorithm.name=fedyogi"],
    "fedex_lora": ["algorithm.name=fedex_lora", "clients.per_round=5"],
    "fedmomentum, by its products": [
        "algorithm.name=fedmomentum",
        "privacy={mechanism: {name: client, bound: 0.1}, noise_multiplier: 0.5, delta: 1.0e-5}",
    ],
    "florist": ["algorithm.name=florist"],
    "moon": ["algorithm.name=moon", "clients.per_round=4"],
    "noise regulator": [
        "algorithm.name=deer",
        "privacy={mechanism: {name: noise_regulator, bound: 0.1}, noise_multiplier: 0.5, delta: 1.0e-5}",
    ],
    "every client's own noise, Poisson cohorts": [
        "clients.sampling=poisson",
        "clients.per_round=2",
        "privacy={mechanism: {name: client, bound: 0.1, noise: local}, noise_multiplier: 0.5, delta: 1.0e-5, "
        "adjacency: replace_one}",
    ],
    "totals with noise, a bound that follows a quantile": [
        "algorithm.name=scaffold",
        "train={lr: 0.05, momentum: 0.0, batch_size: 8}",
        "privacy={mechanism: {name: client, bound: 0.1, clipping: {name: quantile, count_noise: 2.0}}, "
        "noise_multiplier: 0.5, delta: 1.0e-5}",
    ],
    "record-level privacy": [
        "privacy={mechanism: {name: record, bound: 0.5}, noise_multiplier: 1.0, delta: 1.0e-3}",
        "data.augment=[flip]",
    ],
    "more ranks than blocks": ["clients.per_block=4", "clients.per_round=4"],
}
BY_PRODUCTS = ("fedex_lora", "fedmomentum, by its products")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_any_number_of_ranks_gives_the_same_bits(case, tmp_path):
    many = (
        "deer",
        "prrfl",
        "harmofl",
        "noise regulator",
        "record-level privacy",
        "fedex_lora",
        "fedmomentum, by its products",
    )
    counts = (0, 1, 2, 3) if case in many else (0, 3)
    compare(write_config(tmp_path), CASES[case], counts, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["harmofl", "fedbn"])
def test_masks_on_any_number_of_ranks(method, tmp_path):
    compare(write_masked_config(tmp_path), [f"algorithm.name={method}"], (1, 2, 3), tmp_path)


@pytest.mark.slow
def test_a_decoder_on_any_number_of_ranks(tmp_path):
    """Mask folders of several sites, a transformer with LoRA and a decoder."""
    words = "{patch_size: 4, embed_dim: 16, depth: 4, num_heads: 2}"
    model = f"{{name: 'timm:vit_tiny_patch16_224', weights: random, options: {words}, lora: {{r: 2}}"
    options = ["algorithm.name=deer", f"model={model}, decoder: {{name: upernet_light, width: 8}}}}"]
    compare(write_masked_config(tmp_path), options, (1, 2), tmp_path)
    assert (tmp_path / "2" / "predictions.png").is_file()


@pytest.mark.slow
def test_volumes_on_any_number_of_ranks(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    write_volumes(tmp_path / "adrenalmnist3d.npz")
    volumes = f"data={{name: 'medmnist:adrenalmnist3d', root: {tmp_path}, image_size: 14, slices: 3}}"
    compare(write_config(tmp_path), [volumes, "clients.partition={name: iid}"], (1, 2, 3), tmp_path)


@pytest.mark.slow
def test_asynchronous_rounds_on_any_number_of_ranks(tmp_path):
    """Clients that keep something between rounds and begin from several states; some of them drop."""
    devices = "[{name: fast, speed: 4.0}, {name: slow, speed: 0.3, up_mbps: 1.0, dropout: 0.2}]"
    clock = f"{{example_seconds: 0.1, devices: {devices}, aggregation: {{name: fedbuff, buffer_size: 3}}}}"
    options = ["algorithm.name=fedsa_lora", "rounds=4", "clients.per_round=5", f"clock={clock}"]
    compare(write_config(tmp_path), options, (1, 2, 3), tmp_path)


def compare(config, options, counts, folder):
    """Run two rounds on each number of ranks."""
    for ranks in counts:
        done = launch(ranks, "run", config, "rounds=2", *options, "--out", folder / str(ranks))
        assert done.returncode == 0, done.stderr
    alone, *others = (folder / str(ranks) for ranks in counts)
    for other in others:
        assert results(other)["state_sha256"] == results(alone)["state_sha256"]
        assert same_log(other, alone)
