"""A loop in the style in which papers release their code: clients in turn, a deep copy of the model each."""

from copy import deepcopy

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks import regimes
from benchmarks.contenders.common import (
    Outcome,
    RoundClock,
    Settings,
    parse_settings,
    peak_rss_of_tree,
    write_report,
)
from benchmarks.peer_model import Classifier, autocast, normalised


class ClientImages(Dataset[tuple[Tensor, int]]):
    """Images are normalised one by one on access, as torchvision's transforms do."""

    def __init__(self, regime: regimes.Regime, client_id: int) -> None:
        images, self.labels = regimes.client_data(regime, client_id)
        self.images = torch.from_numpy(images)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return normalised(self.images[index]), int(self.labels[index])


def train_client(model: Classifier, loader: DataLoader[tuple[Tensor, int]], precision: str) -> None:
    model.train()
    optimizer = model.local_optimizer()
    for images, labels in loader:
        optimizer.zero_grad()
        with autocast(precision):
            loss = model.loss(images, labels)
        loss.backward()
        optimizer.step()


def run_round(model: Classifier, loaders: list[DataLoader[tuple[Tensor, int]]], precision: str) -> None:
    num_images = np.array([len(loader.dataset) for loader in loaders])  # type: ignore[arg-type]  # these data sets have a length
    local_factors = []
    for loader in loaders:
        local = deepcopy(model)
        train_client(local, loader, precision)
        model.first_step_at = model.first_step_at or local.first_step_at
        local_factors.append(deepcopy(local.factors()))
    with torch.no_grad():
        for name, factor in model.factors().items():
            weighted = [
                weight * local[name] for weight, local in zip(num_images / num_images.sum(), local_factors, strict=True)
            ]
            factor.copy_(torch.stack(weighted).sum(0))


def run(settings: Settings) -> Outcome:
    torch.set_num_threads(settings.threads)
    regime = settings.regime
    model = Classifier(regime)
    loaders = [
        DataLoader(ClientImages(regime, client_id), regimes.BATCH_SIZE) for client_id in range(regime.num_clients)
    ]
    clock, after_first = RoundClock(), {}
    for index in range(settings.rounds + 1):
        clock.start()
        run_round(model, loaders, settings.precision)
        clock.stop()
        if index == 0:
            after_first = model.factor_arrays()
    assert model.first_step_at is not None, "every regime has images"
    return Outcome(clock.seconds, model.first_step_at, peak_rss_of_tree(), after_first)


if __name__ == "__main__":
    settings = parse_settings(__doc__ or "")
    if settings.processes != 1:
        raise SystemExit("--processes: the release-style loop is one process; give 1")
    write_report("release_loop", settings, run(settings))
