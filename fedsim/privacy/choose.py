"""From a config's privacy section to the layers around the method."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.base import Facts
from fedsim.config.data import ClientsConfig
from fedsim.config.experiment import Config
from fedsim.config.privacy import ClientLevel, NoiseRegulator
from fedsim.privacy.client_level import ClientLevelLayer, Noise
from fedsim.privacy.layer import Layer
from fedsim.privacy.noise_regulator import WhitenedRegulator
from fedsim.privacy.released_noise import ReleasedNoise


def privacy_layers(config: Config, facts: Facts, sizes: Sequence[int]) -> list[Layer]:
    """Return the layers that protect whole updates; none where single images are protected, or nothing is.

    ``sizes``: training images per client, which count as public. The config's noise multiplier is settled.
    """
    privacy = config.privacy
    if privacy is None or not isinstance(privacy.mechanism, ClientLevel | NoiseRegulator):
        return []
    assert privacy.noise_multiplier is not None, "solved before"
    mechanism, expected = privacy.mechanism, expected_clients(config.clients, sizes)
    secured = privacy.secure_aggregation
    # So many are sure to be in a sum that can be unmasked.
    shares = 1 if secured is None else secured.fewest(int(expected))
    noise = Noise(privacy.noise_multiplier, fixed_weights(config.clients, sizes), expected, shares)
    if isinstance(mechanism, ClientLevel):
        return [ClientLevelLayer(facts, config.seed, mechanism, noise)]
    if mechanism.form == "released":
        return [ReleasedNoise(facts, config.seed, mechanism, noise)]
    return [WhitenedRegulator(facts, config.seed, ClientLevel(name="client", bound=mechanism.bound), noise)]


def expected_clients(clients: ClientsConfig, sizes: Sequence[int]) -> float:
    """Return how many clients with images take part in a round, on average."""
    present = int(np.count_nonzero(np.asarray(sizes)))
    if clients.sampling == "poisson":
        return present * clients.num_per_round / clients.count
    return float(min(clients.num_per_round, present))


def fixed_weights(clients: ClientsConfig, sizes: Sequence[int]) -> Tensor:
    """Return the weights of all clients, float64, that do not depend on who takes part in a round.

    A client's share of all, over the expected fraction of clients in a round: in a round of all they are the mean's.
    """
    images = torch.from_numpy(np.array(sizes, np.int64))
    present = (images > 0).double()
    volume = images.double() if clients.weighting == "samples" else present
    return volume / volume.sum() * present.sum() / expected_clients(clients, sizes)
