#!/usr/bin/env bash
# appfl 1.12.0 (torch 2.15.0, opacus 1.6.0, omegaconf 2.4.0, numpy 2.4.6, Python 3.11): with secure aggregation the model
# after the first round is the mean of the changes, without the weights that they were changes of; weighed by their
# numbers of samples, the hospitals' masks stay in it.
#
# Expected: FedAvg gives the same global model with use_secure_agg as without it, to rounding, since masks cancel.
# Seen, weights of 5, three clients of 100, 200 and 300 samples that move them by 0.1, 0.2 and 0.3:
#     client_weights_mode     plain    masked, round 1    masked, round 2 (the same moves once more)
#     equal                   5.2           0.2                 0.4
#     sample_size             5.233      -1.1 to 1.3        -1.2 to 1.9    the mean, and what is left of masks
# The trainer masks its changes; FedAvgAggregator.aggregate (appfl/algorithm/aggregator/fedavg_aggregator.py) takes their
# mean for the global state while there is none yet, though it holds the model. A pretrained encoder is gone after one
# round, and a new one trains on. Weights per client are laid on what is masked already. Nothing is raised or said.
# Exit code 1 if this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.15.0 opacus==1.6.0 omegaconf==2.4.0 packaging==26.4 numpy==2.4.6
"$place/venv/bin/pip" install --quiet --no-deps appfl==1.12.0
HOME="$place" "$place/venv/bin/python" -W ignore - <<'PROGRAM'
import torch
from appfl.algorithm.aggregator import FedAvgAggregator
from appfl.privacy.secure_aggregator import SecureAggregator
from omegaconf import DictConfig

torch.set_num_threads(1)
SAMPLES = {"north": 100, "south": 200, "west": 300}
MOVES = {"north": 0.1, "south": 0.2, "west": 0.3}


def network():
    model = torch.nn.Linear(50, 2)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 5)
    return model


def payload(name, number):
    """What VanillaTrainer sends for changes by the same amount everywhere."""
    change = {key: torch.full_like(value, MOVES[name]) for key, value in network().state_dict().items()}
    masks = SecureAggregator(name, list(SAMPLES), b"secret", torch.device("cpu"))
    flat, shapes = masks.mask_update(change, number)
    return {"type": "masked_update_flat", "flat": flat, "shapes": shapes, "num_examples": SAMPLES[name]}


def models(mode, masked):
    configs = DictConfig({"client_weights_mode": mode, "use_secure_agg": masked})
    aggregator = FedAvgAggregator(network(), configs)
    aggregator.client_sample_size = SAMPLES
    for number in range(2):
        before = aggregator.get_parameters()
        if masked:
            answers = {name: payload(name, number) for name in SAMPLES}
        else:
            answers = {name: {key: value + MOVES[name] for key, value in before.items()} for name in SAMPLES}
        yield torch.cat([value.flatten() for value in aggregator.aggregate(answers).values()])


for mode, mean in (("equal", 0.2), ("sample_size", 7 / 30)):
    plain, masked = list(models(mode, False)), list(models(mode, True))
    print(mode, [[round(one.min().item(), 3), round(one.max().item(), 3)] for one in plain + masked])
    for number in range(2):
        assert torch.allclose(plain[number], torch.tensor(5 + mean * (number + 1)), atol=1e-4)
        if mode == "equal":
            assert torch.allclose(masked[number], torch.tensor(mean * (number + 1)), atol=1e-4)
        else:
            assert (masked[number] - mean * (number + 1)).std() > 0.1 and masked[number].max() < 4
PROGRAM
