"""Typed configuration of a run; ``configure.py`` reads it."""

from typing import Self

from pydantic import Field, model_validator

from fedsim.config.amplitude import AmplitudeNormConfig
from fedsim.config.base import Count, Name, Seed, Words
from fedsim.config.clock import ClockConfig, FedBuff, Synchronous
from fedsim.config.data import ClientsConfig, DataConfig, FractionsConfig
from fedsim.config.mistakes import KeyedError, show
from fedsim.config.partitions import PartitionConfig
from fedsim.config.plain_yaml import to_yaml
from fedsim.config.privacy import PrivacyConfig, RecordLevel
from fedsim.config.track import TrackConfig
from fedsim.config.train import CheckpointConfig, EvaluateConfig, ScheduleConfig, StoreConfig, TrainConfig
from fedsim.config.words import AlgorithmConfig, LoraConfig, ModelConfig

__all__ = [
    "AlgorithmConfig",
    "AmplitudeNormConfig",
    "CheckpointConfig",
    "ClientsConfig",
    "ClockConfig",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "FractionsConfig",
    "LoraConfig",
    "ModelConfig",
    "PartitionConfig",
    "PrivacyConfig",
    "ScheduleConfig",
    "StoreConfig",
    "TrackConfig",
    "TrainConfig",
    "Words",
    "dump_config",
]


class Config(Words):
    """A whole experiment."""

    name: Name = Field(description="Name of the run and of its folder: letters, digits, dot, underscore, hyphen.")
    seed: Seed = Field(default=0, description="Every random draw of the run follows from it.")
    rounds: Count = Field(description="Communication rounds.")
    algorithm: AlgorithmConfig = Field(default=AlgorithmConfig(), description="The method and its own keys.")
    model: ModelConfig = Field(description="Encoder, LoRA, classifier.")
    data: DataConfig = Field(description="Images, split, augmentation.")
    clients: ClientsConfig = Field(description="Number, sampling and partition of the clients.")
    train: TrainConfig = Field(description="Local training.")
    evaluate: EvaluateConfig = Field(default=EvaluateConfig(), description="Evaluation and early stop.")
    deterministic: bool = Field(
        default=True, description="Whether a GPU uses only kernels that give the same bits every time."
    )
    privacy: PrivacyConfig | None = Field(
        default=None, description="Differential privacy and secure aggregation; null: none."
    )
    clock: ClockConfig | None = Field(
        default=None, description="Simulated devices, faults and asynchronous rounds; null: no clock, all arrive."
    )
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="Saving the state.")
    store: StoreConfig = Field(default=StoreConfig(), description="Memory for what clients keep between rounds.")
    track: TrackConfig | None = Field(default=None, description="MLflow, Weights & Biases; null: TensorBoard alone.")

    def evaluates(self, round: int) -> bool:
        """Whether models are measured after a round (counted from 1)."""
        return round == self.rounds or round % self.evaluate.every == 0

    @property
    def observes(self) -> bool:
        """Whether the log may have what only a simulation sees: single clients, and who is in a round."""
        return self.privacy is None or self.privacy.observe

    @property
    def is_asynchronous(self) -> bool:
        """Whether the server goes on without waiting for all clients that train."""
        return self.clock is not None and not isinstance(self.clock.aggregation, Synchronous)

    @model_validator(mode="after")
    def _sites_to_truncate(self) -> Self:
        name = self.clients.partition.name
        if self.data.truncate_to_smallest and name != "sites":
            raise KeyedError("data.truncate_to_smallest", f"true with clients.partition.name: {name}", "sites there")
        return self

    @model_validator(mode="after")
    def _clients_of_a_column(self) -> Self:
        name, columns = self.clients.partition.name, self.data.columns
        if columns is not None and columns.client is not None and name != "column":
            found = f"{show(columns.client)} with clients.partition.name: {name}"
            raise KeyedError("data.columns.client", found, "column there, or no such key")
        return self

    @model_validator(mode="after")
    def _who_may_diverge(self) -> Self:
        if self.clients.max_diverged > 0 and (self.privacy is not None or self.is_asynchronous):
            beside = "asynchronous rounds" if self.privacy is None else "privacy"
            why = "a buffer counts on all" if self.privacy is None else "nothing accounts for telling who is left out"
            raise KeyedError("clients.max_diverged", f"{self.clients.max_diverged:g} with {beside}", f"0: {why}")
        return self

    @model_validator(mode="after")
    def _counts_stay_private(self) -> Self:
        if self.privacy is not None and self.train.class_weights == "balanced":
            expected = "numbers of your own: the clients' counts would be told without being accounted for"
            raise KeyedError("train.class_weights", "balanced with privacy", expected)
        return self

    @model_validator(mode="after")
    def _clock_fits_the_cohorts(self) -> Self:
        if self.clock is None:
            return self
        if self.privacy is not None:
            found = "a section with privacy, whose statements are about cohorts of which nobody is missing"
            raise KeyedError("clock", found, "null, or privacy: null")
        how, clients = self.clock.aggregation, self.clients
        if isinstance(how, Synchronous):
            is_open = clients.sampling in ("poisson", "multinomial")
            if how.over_selection > 1 and (is_open or clients.num_per_round == clients.count):
                found = f"{how.over_selection:g} with sampling: {clients.sampling}, per_round: {clients.per_round}"
                raise KeyedError("clock.aggregation.over_selection", found, "1: there is no number to exceed")
            return self
        if clients.sampling in ("poisson", "multinomial"):
            found = f"{clients.sampling} with clock.aggregation: {how.name}, which replaces one client by one"
            raise KeyedError("clients.sampling", found, "uniform or volume")
        if isinstance(how, FedBuff) and how.buffer_size > clients.count:
            found = f"{how.buffer_size}, each of another client"
            raise KeyedError("clock.aggregation.buffer_size", found, f"at most clients.count = {clients.count}")
        return self

    @model_validator(mode="after")
    def _record_level_clips_and_draws(self) -> Self:
        if self.privacy is None or not isinstance(self.privacy.mechanism, RecordLevel):
            return self
        if self.train.clip_norm is not None:
            found = f"{self.train.clip_norm:g} with privacy.mechanism: record"
            raise KeyedError("train.clip_norm", found, "null: the mechanism clips every image's gradient")
        if not self.train.shuffle:
            found = "false with privacy.mechanism: record"
            raise KeyedError("train.shuffle", found, "true: batches are Poisson samples, which have no order")
        return self


def dump_config(config: Words) -> str:
    """The fully resolved config as YAML; ``configure.load_config`` reads it back to an equal ``Config``."""
    return to_yaml(config.model_dump(mode="json"))


def as_computed(config: Config) -> Config:
    """The same config without what no result depends on: where states rest, and who is told of the numbers."""
    return config.model_copy(update={"store": StoreConfig(), "track": None})


def with_noise(config: Config, noise_multiplier: float | None) -> Config:
    """The same config with the noise multiplier settled that its epsilon takes; None leaves it open."""
    if config.privacy is None or config.privacy.noise_multiplier is not None:
        return config
    return config.model_copy(
        update={"privacy": config.privacy.model_copy(update={"noise_multiplier": noise_multiplier})}
    )


def with_block_size(config: Config, per_block: int | None) -> Config:
    """The same config with ``clients.per_block`` settled; None leaves it open."""
    if per_block is None:
        return config
    return config.model_copy(update={"clients": config.clients.model_copy(update={"per_block": per_block})})
