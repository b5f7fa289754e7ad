"""Flower's simulation engine: FedAvg over Ray actors, one client at a time in each actor.

Uses ``start_simulation``: the newer engine looks for messages every tenth of a second, which would count
against Flower.
"""

import logging
import os
import sys
from pathlib import Path

from benchmarks.contenders.common import (
    Outcome,
    RoundClock,
    Settings,
    parse_settings,
    peak_rss_of_tree,
    write_report,
)

# Read when flwr and ray are imported. The actors import this package from the repository's root.
os.environ |= {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's own default puts its workers behind everything else on the machine
    "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
}

import ray
from flwr.common import FitIns, FitRes, Parameters, Scalar, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ServerConfig
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg
from flwr.simulation import start_simulation

from benchmarks import regimes
from benchmarks.contenders.flower_client import client_function

OBJECT_STORE_BYTES = 200 * 2**20


class TimedFedAvg(FedAvg):
    """FedAvg over all clients that notes when a round begins and ends, and what the first one gave."""

    def __init__(self, regime: regimes.Regime, initial: Parameters) -> None:
        super().__init__(
            fraction_evaluate=0.0,
            min_fit_clients=regime.num_clients,
            min_available_clients=regime.num_clients,
            initial_parameters=initial,
        )
        self.clock = RoundClock()
        self.first_step_at = float("inf")
        self.after_first: Parameters | None = None

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        self.clock.start()
        return super().configure_fit(server_round, parameters, client_manager)

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        if failures:
            raise RuntimeError(f"round {server_round}: {len(failures)} clients failed: {failures[0]}")
        aggregate = super().aggregate_fit(server_round, results, failures)
        self.clock.stop()
        if server_round == 1:
            self.after_first = aggregate[0]
            self.first_step_at = min(float(result.metrics["first_step_at"]) for _, result in results)
        return aggregate


def run(settings: Settings) -> Outcome:
    regime = settings.regime
    logging.getLogger("flwr").setLevel(logging.ERROR)
    initial = regimes.lora_arrays(regime)
    strategy = TimedFedAvg(regime, ndarrays_to_parameters(list(initial.values())))
    start_simulation(
        client_fn=client_function(regime.name, settings.precision, settings.threads),
        num_clients=regime.num_clients,
        config=ServerConfig(num_rounds=settings.rounds + 1),
        strategy=strategy,
        client_resources={"num_cpus": 1, "num_gpus": 0.0},
        ray_init_args={
            "num_cpus": settings.processes,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        },
    )
    peak_rss_bytes = peak_rss_of_tree()
    ray.shutdown()
    assert strategy.after_first is not None, "there is at least the warm-up round"
    factors = dict(zip(initial, parameters_to_ndarrays(strategy.after_first), strict=True))
    return Outcome(strategy.clock.seconds, strategy.first_step_at, peak_rss_bytes, factors)


if __name__ == "__main__":
    settings = parse_settings(__doc__ or "")
    write_report("flower", settings, run(settings))
    sys.stdout.flush()
    os._exit(0)  # the engine's timer thread would keep this process for ten seconds more
