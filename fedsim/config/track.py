"""The section of a config about who else is told of a run's numbers."""

from typing import Literal, Self

from pydantic import Field, model_validator

from fedsim.config.base import Text, Words
from fedsim.config.mistakes import KeyedError


class TrackConfig(Words):
    """Where a run's numbers go beside its own folder and TensorBoard."""

    mlflow: Text | None = Field(
        default=None, description="MLflow's store or server, such as sqlite:///mlflow.db; null: none."
    )
    wandb: Literal["offline", "online"] | None = Field(
        default=None, description="Weights & Biases: offline leaves files in the run folder; null: none."
    )

    @model_validator(mode="after")
    def _somebody_is_told(self) -> Self:
        if self.mlflow is None and self.wandb is None:
            raise KeyedError("mlflow", "neither mlflow nor wandb", "one of them; track: null for none")
        return self
