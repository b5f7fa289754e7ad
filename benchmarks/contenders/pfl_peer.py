"""apple/pfl-research: FederatedAveraging on the PyTorch backend, one or several processes (gloo).

Further processes find each other through pfl's own variables, which spares the memory of torchrun.
"""

import os
import socket
import subprocess
import sys

import numpy as np
import torch

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


def start_other_ranks(num_processes: int) -> list[subprocess.Popen[bytes]]:
    """Start ranks 1.. of this same command, and make this process rank 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ[ADDRESSES] = ",".join([f"127.0.0.1:{port}"] * num_processes)
    os.environ[STARTED_AT] = repr(process_started_at())
    command = [sys.executable, "-m", "benchmarks.contenders.pfl_peer", *sys.argv[1:]]
    others = [
        subprocess.Popen(command, env={**os.environ, RANK: str(rank)}, stdin=subprocess.PIPE)
        for rank in range(1, num_processes)
    ]
    os.environ[RANK] = "0"
    return others


def run(settings: Settings) -> Outcome:
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
    torch.set_num_threads(settings.threads)
    regime = settings.regime
    model = Classifier(regime)
    clock, after_first = RoundClock(), {}

    class Watch(TrainingProcessCallback):
        def on_train_begin(self, **_: PyTorchModel) -> Metrics:
            clock.start()
            return Metrics()

        def after_central_iteration(
            self, _metrics: Metrics, model: PyTorchModel, *, central_iteration: int
        ) -> tuple[bool, Metrics]:
            clock.stop()
            if central_iteration == 0:
                after_first.update(model.pytorch_model.factor_arrays())
            clock.start()
            return False, Metrics()

    clients = [Dataset(client_tensors(regime, client_id)) for client_id in range(regime.num_clients)]
    training = FederatedDataset(clients.__getitem__, MinimizeReuseUserSampler(range(regime.num_clients)))
    pfl_model = PyTorchModel(
        model,
        local_optimizer_create=lambda _, lr: model.local_optimizer(lr),
        central_optimizer=torch.optim.SGD(model.factors().values(), lr=1.0),
        amp_dtype=torch.bfloat16 if settings.precision == "bf16" else None,
    )
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=settings.rounds + 1,
            evaluation_frequency=settings.rounds + 1,  # the warm-up round only, pfl cannot be told never
            train_cohort_size=regime.num_clients,
            val_cohort_size=None,
        ),
        SimulatedBackend(training, training, postprocessors=[WeightByDatapoints()]),
        pfl_model,
        NNTrainHyperParams(
            local_batch_size=regimes.BATCH_SIZE,
            local_num_epochs=1,
            local_learning_rate=regimes.LEARNING_RATE,
        ),
        NNEvalHyperParams(local_batch_size=regimes.BATCH_SIZE),
        [Watch()],
        send_metrics_to_platform=False,
    )
    assert model.first_step_at is not None, "every regime has images"
    return Outcome(clock.seconds, model.first_step_at, peak_rss_of_tree(), after_first)


def main() -> None:
    settings = parse_settings(__doc__ or "")
    is_other_rank = RANK in os.environ
    others = [] if is_other_rank or settings.processes == 1 else start_other_ranks(settings.processes)
    outcome = run(settings)
    if is_other_rank:
        sys.stdin.read()  # stay until rank 0 has read this process's peak memory, or is gone
        return
    write_report("pfl", settings, outcome)
    for other in others:
        other.communicate()


if __name__ == "__main__":
    main()
