"""The train state, and the optimizer from the config."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from kdjax.errors import UserError, nearest
from kdjax.training.schedules import learning_rate

OPTIMIZERS = ("sgd", "adamw")


@flax.struct.dataclass
class TrainState:
    """All that a run carries from step to step.

    Attributes:
      step: [] int32, updates made so far.
      params: of the network that is trained.
      batch_stats: its running statistics, {} where it has none.
      distiller: {'params': ..., 'state': ...} of what the losses carry; never exported with the network.
      opt_state: over {'model': params, 'distiller': distiller['params']}.
    """

    step: Any
    params: Any
    batch_stats: Any
    distiller: Any
    opt_state: Any

    @property
    def trainable(self) -> dict:
        """What the optimizer moves."""
        return {"model": self.params, "distiller": self.distiller["params"]}


def create_state(variables: Mapping, distiller: Mapping, config: Mapping) -> TrainState:
    """Returns the state before the first step; `config` may hold traced numbers, they do not enter the state."""
    trainable = {"model": variables["params"], "distiller": distiller["params"]}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        distiller=dict(distiller),
        opt_state=optimizer(config, rate=0.0).init(trainable),
    )


def optimizer(config: Mapping, rate) -> optax.GradientTransformation:
    """Builds the optax transformation for one step.

    Args:
      config: joined config; floats in `config['optimizer']` may be traced.
      rate: [] learning rate of this step.

    Raises:
      UserError: the optimizer's name is unknown.
    """
    fields = config["optimizer"]
    decay = optax.add_decayed_weights(fields["weight_decay"], mask=_is_kernel if fields["decay"] == "kernels" else None)
    if fields["name"] == "sgd":  # weight decay enters the momentum, as in torch.optim.SGD
        momentum = optax.trace(decay=fields["momentum"], nesterov=fields["nesterov"])
        return optax.chain(decay, momentum, optax.scale_by_learning_rate(rate))
    if fields["name"] == "adamw":
        moments = optax.scale_by_adam(b1=fields["b1"], b2=fields["b2"])
        return optax.chain(moments, decay, optax.scale_by_learning_rate(rate))
    raise UserError(f"unknown optimizer '{fields['name']}'.{nearest(fields['name'], OPTIMIZERS)}")


def _is_kernel(params):
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)


def rate_at(step, config: Mapping, steps_per_epoch: int):
    """Returns the learning rate of update number `step` (counted from 0)."""
    # Whole epochs by integer division: milestones must fall on the first step of an epoch to the bit.
    epoch = step // steps_per_epoch + jnp.asarray(step % steps_per_epoch, float) / steps_per_epoch
    return learning_rate(config["optimizer"]["learning_rate"], epoch, config["schedule"], config["epochs"])


def check(config: Mapping) -> None:
    """Tries optimizer and schedule on a config's numbers.

    Raises:
      UserError: an unknown name, or a schedule of the user's own that fails.
    """
    optimizer(config, rate=0.0)
    try:
        rate_at(jnp.zeros((), jnp.int32), config, 1)
    except UserError:
        raise
    except Exception as error:  # a user's function may fail in any way
        name = config["schedule"]["name"]
        raise UserError(f"config.schedule '{name}' failed: {type(error).__name__}: {error}") from error
