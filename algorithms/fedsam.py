"""FedSAM: FedAvg whose clients look for flat optima."""

from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator
from torch import Tensor

from algorithms.base import Algorithm
from fedsim.ascent import adaptive, steepest
from fedsim.config_errors import refuse_idle


class FedSAM(Algorithm):
    """Qu et al., Generalized federated learning via sharpness aware minimization, ICML 2022.

    Every local step uses the gradient at the weights moved up their loss by ``radius``. ``adaptive`` measures the
    radius relative to the weights, as ASAM (Kwon et al., ICML 2021) does.
    """

    summary = "clients step with the gradient a little uphill (Qu et al., 2022)"

    class Config(Algorithm.Config):
        radius: float = Field(0.05, ge=0, description="Length of the move, rho; 0 is FedAvg.")
        adaptive: bool = Field(False, description="Whether the length is measured relative to the weights, as in ASAM.")

        @model_validator(mode="after")
        def _radius_is_used(self) -> Self:
            if self.radius == 0:
                refuse_idle(self, ["adaptive"], "radius: 0")
            return self

    def ascend(self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        radius: float = self.config.radius
        if radius == 0:
            return {}
        if self.config.adaptive:
            return adaptive(params, grads, self.specs, radius)
        return steepest(grads, self.specs, radius)
