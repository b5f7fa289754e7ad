"""The blocks that are trained to learn what blocks cost; what they train is thrown away.

B blocks.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from fedsim.algorithms.base import Phase, ServerState
from fedsim.measure.client_scores import ClientScores
from fedsim.phase import Sums, train_blocks
from fedsim.schedule.cohort import Cohort, num_local_steps
from fedsim.simulation import Simulation
from fedsim.verbs.planning.calibration import features
from fedsim.verbs.trial import with_steps

#: Blocks are trained whole where one takes no longer than this, and until all together have taken so much longer.
BLOCK_SECONDS, ALL_SECONDS = 10.0, 30.0
MOST_BLOCKS = 6


@dataclass(frozen=True)
class Trial:
    """A block to be trained for the measurement: as a whole, or a few steps of it."""

    phase: Phase
    block: range
    sim: Simulation
    features: tuple[int, float, int]

    def seconds(self, state: ServerState, cohort: Cohort) -> float:
        """Train it and return what that took; what clients keep is forgotten."""
        sums = train(replace(self.sim, store=self.sim.store.emptied("plan")), state, self.phase, cohort, [self.block])
        return float(sums.table[2].sum())


def train(sim: Simulation, state: ServerState, phase: Phase, cohort: Cohort, blocks: list[range]) -> Sums:
    """Train blocks as a round does."""
    return train_blocks(sim, state, phase, cohort, blocks, ClientScores(sim, state, cohort, blocks, None))


def work_of(sim: Simulation, client: int) -> tuple[int, float]:
    """Return a client's local steps in a phase, and the images that it sees in them."""
    steps, size = num_local_steps(sim.config.train, sim.sizes[client]), sim.sizes[client]
    return steps, steps * size / math.ceil(size / sim.config.train.batch_size)


def phase_named(sim: Simulation, name: str) -> Phase:
    """Return a phase of the first round."""
    return next(phase for phase in sim.algorithm.phases(1) if phase.name == name)


def make_trial(sim: Simulation, phase: Phase, cohort: Cohort, place: int, most_steps: int) -> Trial:
    """Return the trial of the block that begins at ``place``, of at most so many steps for each client."""
    block = range(place, min(place + sim.per_block, len(cohort.clients)))
    whole = num_local_steps(sim.config.train, sim.sizes[cohort.clients[place]])
    limited = with_steps(sim, most_steps) if most_steps < whole else sim
    works = [work_of(limited, cohort.clients[position]) for position in block]
    ((steps, images, clients),) = features(works, sim.per_block).tolist()
    return Trial(phase, block, limited, (int(steps), images, int(clients)))


def choose_trials(sim: Simulation, state: ServerState, cohort: Cohort) -> tuple[list[Trial], list[float]]:
    """Train blocks from both ends and from between, as long as there is time; return them with their seconds."""
    starts = [block.start for block in cohort.blocks(sim.per_block)]
    spread = np.linspace(0, len(starts) - 1, min(MOST_BLOCKS, len(starts))).round().astype(int)
    order = sorted(dict.fromkeys(spread.tolist()), key=lambda place: min(place, len(starts) - 1 - place))
    trials, seconds = [], []
    for phase in sim.algorithm.phases(1):
        spent = 0.0
        for place in order:
            if spent > ALL_SECONDS:
                break
            # What is done once, as for the frozen prefix of these clients' images, a step does that is not counted.
            one = make_trial(sim, phase, cohort, starts[place], 1)
            one.seconds(state, cohort)
            sim.trainer.agreement = one.sim.trainer.agreement
            step = one.seconds(state, cohort)
            most = max(2, int(BLOCK_SECONDS / step))
            trials.append(make_trial(sim, phase, cohort, starts[place], most))
            seconds.append(trials[-1].seconds(state, cohort))
            spent += step * 2 + seconds[-1]
    return trials, seconds
