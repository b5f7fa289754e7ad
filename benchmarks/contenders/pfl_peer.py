"""apple/pfl-research: FederatedAveraging on the PyTorch backend, one or several processes (gloo).

Further processes find each other through pfl's own variables, which spares the memory of torchrun.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import regimes
from benchmarks.contenders.common import (
    STARTED_AT,
    Outcome,
    RoundClock,
    Settings,
    parse_settings,
    peak_rss_of_tree,
    process_started_at,
    write_report,
)
from benchmarks.peer_model import Classifier, client_tensors

RANK, ADDRESSES = "PFL_WORKER_RANK", "PFL_WORKER_ADDRESSES"


def start_other_ranks(module: str, num_processes: int) -> list[subprocess.Popen[bytes]]:
    """Start ranks 1.. of this same command, ``module``'s, and make this process rank 0; nothing where it is another."""
    if RANK in os.environ or num_processes == 1:
        return []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ[ADDRESSES] = ",".join([f"127.0.0.1:{port}"] * num_processes)
    os.environ[STARTED_AT] = repr(process_started_at())
    command = [sys.executable, "-m", module, *sys.argv[1:]]
    others = [
        subprocess.Popen(command, env={**os.environ, RANK: str(rank)}, stdin=subprocess.PIPE)
        for rank in range(1, num_processes)
    ]
    os.environ[RANK] = "0"
    return others


def federate(
    model: Any,
    clients: Sequence[tuple[Tensor, Tensor]],
    batch_size: int,
    num_rounds: int,
    begin: Callable[[], object],
    end: Callable[[int], object],
    amp_dtype: torch.dtype | None = None,
) -> None:
    """Train ``model`` for some rounds on all clients, an epoch of each; ``begin`` and ``end``: around every round.

    ``model`` has ``loss`` and ``metrics``, as pfl asks for, ``factors`` that it trains, and ``local_optimizer``.
    """
    # Importing pfl's PyTorch operations opens the process group, so the ranks must be set before.
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import MinimizeReuseUserSampler
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    np.random.seed(0)  # pfl seeds its users and queries from it; all ranks must agree

    class Watch(TrainingProcessCallback):
        def on_train_begin(self, **_: PyTorchModel) -> Metrics:
            begin()
            return Metrics()

        def after_central_iteration(
            self, _metrics: Metrics, _model: PyTorchModel, *, central_iteration: int
        ) -> tuple[bool, Metrics]:
            end(central_iteration)
            if central_iteration + 1 < num_rounds:
                begin()
            return False, Metrics()

    users = [Dataset(own) for own in clients]
    training = FederatedDataset(users.__getitem__, MinimizeReuseUserSampler(range(len(users))))
    pfl_model = PyTorchModel(
        model,
        local_optimizer_create=lambda _, lr: model.local_optimizer(lr),
        central_optimizer=torch.optim.SGD(model.factors().values(), lr=1.0),
        amp_dtype=amp_dtype,
    )
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=num_rounds,
            evaluation_frequency=num_rounds,  # the warm-up round only, pfl cannot be told never
            train_cohort_size=len(users),
            val_cohort_size=None,
        ),
        SimulatedBackend(training, training, postprocessors=[WeightByDatapoints()]),
        pfl_model,
        NNTrainHyperParams(
            local_batch_size=batch_size,
            local_num_epochs=1,
            local_learning_rate=regimes.LEARNING_RATE,
        ),
        NNEvalHyperParams(local_batch_size=batch_size),
        [Watch()],
        send_metrics_to_platform=False,
    )


def run(settings: Settings) -> Outcome:
    torch.set_num_threads(settings.threads)
    regime = settings.regime
    model = Classifier(regime)
    clock, after_first = RoundClock(), {}

    def end(index: int) -> None:
        clock.stop()
        if index == 0:
            after_first.update(model.factor_arrays())

    clients = [client_tensors(regime, client_id) for client_id in range(regime.num_clients)]
    amp_dtype = torch.bfloat16 if settings.precision == "bf16" else None
    federate(model, clients, regimes.BATCH_SIZE, settings.rounds + 1, clock.start, end, amp_dtype)
    assert model.first_step_at is not None, "every regime has images"
    return Outcome(clock.seconds, model.first_step_at, peak_rss_of_tree(), after_first)


def main() -> None:
    settings = parse_settings(__doc__ or "")
    is_other_rank = RANK in os.environ
    others = start_other_ranks("benchmarks.contenders.pfl_peer", settings.processes)
    outcome = run(settings)
    if is_other_rank:
        sys.stdin.read()  # stay until rank 0 has read this process's peak memory, or is gone
        return
    write_report("pfl", settings, outcome)
    for other in others:
        other.communicate()


if __name__ == "__main__":
    main()
