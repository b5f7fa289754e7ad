"""FedSAM: FedAvg whose clients look for flat optima."""

from typing import Self

from pydantic import Field, model_validator

from fedsim.algorithms.base import Algorithm, GradOf, Step, Tensors
from fedsim.algorithms.parts.ascent import adaptive, moved, steepest
from fedsim.config.mistakes import refuse_idle


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

    def gradient(self, params: Tensors, grad_of: GradOf, step: Step) -> Tensors:
        grads, radius = grad_of(params), self.config.radius
        if radius == 0:
            return grads
        up = (
            adaptive(params, grads, self.specs, radius) if self.config.adaptive else steepest(grads, self.specs, radius)
        )
        return grad_of(moved(params, up))
