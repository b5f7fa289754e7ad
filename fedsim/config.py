"""Typed configuration of a run: defaults < YAML < key=value on the command line; unknown keys are errors."""

from fedsim.config_words import (
    AlgorithmConfig,
    CheckpointConfig,
    ClientsConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    LoraConfig,
    ModelConfig,
    PartitionConfig,
    ScheduleConfig,
    TrainConfig,
)

__all__ = [
    "AlgorithmConfig",
    "CheckpointConfig",
    "ClientsConfig",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "LoraConfig",
    "ModelConfig",
    "PartitionConfig",
    "ScheduleConfig",
    "TrainConfig",
]
