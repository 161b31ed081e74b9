"""The train state, the optimizer from the config, and its learning rate."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from kdjax.errors import UserError, nearest
from kdjax.training import averaging
from kdjax.training.dot import dot
from kdjax.training.schedules import Schedule, find_schedule, learning_rate
from kdjax.types import Array

OPTIMIZERS = ("sgd", "adamw", "dot")


@flax.struct.dataclass
class TrainState:
    """All that a run carries from step to step.

    Attributes:
      step: [] int32 updates made so far.
      params: Parameters of the network that is trained.
      batch_stats: Its running statistics, {} where it has none.
      distiller: {'params': ..., 'state': ...} of the losses' adapters; never exported with the network.
      opt_state: Optimizer state over {'model': params, 'distiller': distiller['params']}.
      average: The average of the parameters, {} where the config has none.
    """

    step: Array
    params: Any
    batch_stats: Any
    distiller: dict[str, Any]
    opt_state: Any
    average: Any = flax.struct.field(default_factory=dict)

    @property
    def trainable(self) -> dict[str, Any]:
        """Everything that the optimizer updates."""
        return {"model": self.params, "distiller": self.distiller["params"]}

    @property
    def variables(self) -> dict[str, Any]:
        """The network's variables, as models take them."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_state(variables: Mapping[str, Any], distiller: Mapping[str, Any], config: Mapping[str, Any]) -> TrainState:
    """Returns the state before the first step.

    Args:
      variables: The network's initial variables.
      distiller: {'params': ..., 'state': ...} of the adapters.
      config: The traced sections of the config; its numbers do not enter the state.
    """
    trainable = {"model": variables["params"], "distiller": distiller["params"]}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        distiller=dict(distiller),
        opt_state=optimizer(config, rate=0.0).init(trainable),
        average=averaging.start(variables["params"], config),
    )


def optimizer(config: Mapping[str, Any], rate: Array) -> optax.GradientTransformation:
    """Builds the optax transformation of one step.

    Args:
      config: The traced sections of the config; floats in `config['optimizer']` may be traced.
      rate: [] learning rate of this step.

    Returns:
      A transformation of gradients, for 'dot' of `kdjax.training.dot.Streams` of gradients.

    Raises:
      UserError: The name of the optimizer is unknown, or DOT shall have Nesterov's momentum.
    """
    fields = config["optimizer"]
    decay = optax.add_decayed_weights(fields["weight_decay"], mask=_is_kernel if fields["decay"] == "kernels" else None)
    if fields["name"] == "sgd":  # weight decay enters the momentum, as in torch.optim.SGD
        momentum = optax.trace(decay=fields["momentum"], nesterov=fields["nesterov"])
        return optax.chain(decay, momentum, optax.scale_by_learning_rate(rate))
    if fields["name"] == "dot":
        if fields["nesterov"]:
            raise UserError("config.optimizer.nesterov: optimizer 'dot' has no Nesterov momentum; set it to False.")
        return optax.chain(dot(fields["momentum"], fields["delta"], decay), optax.scale_by_learning_rate(rate))
    if fields["name"] == "adamw":
        moments = optax.scale_by_adam(b1=fields["b1"], b2=fields["b2"])
        return optax.chain(moments, decay, optax.scale_by_learning_rate(rate))
    raise UserError(f"unknown optimizer '{fields['name']}'.{nearest(fields['name'], OPTIMIZERS)}")


def _is_kernel(params: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)


def rate_at(step: Array, config: Mapping[str, Any], steps_per_epoch: int, schedule: Schedule | None = None) -> Array:
    """Returns the scheduled learning rate of an update.

    Args:
      step: [] integer, number of the update, counted from 0.
      config: The traced sections of the config.
      steps_per_epoch: Updates in an epoch.
      schedule: The schedule that the config names; looked up by default.
    """
    schedule = find_schedule(config["schedule"]["name"]) if schedule is None else schedule
    # Whole epochs by integer division: milestones must fall on the first step of an epoch to the bit.
    epoch = step // steps_per_epoch + jnp.asarray(step % steps_per_epoch, float) / steps_per_epoch
    base = config["optimizer"]["learning_rate"]
    return learning_rate(base, epoch, config["schedule"], config["epochs"], schedule)


def check(config: Mapping[str, Any]) -> None:
    """Tries the optimizer and the schedule on a config's numbers.

    Raises:
      UserError: A name is unknown, or a schedule of the user's own fails.
    """
    optimizer(config, rate=0.0)
    try:
        rate_at(jnp.zeros((), jnp.int32), config, 1)
    except UserError:
        raise
    except Exception as error:  # a user's function may fail in any way
        name = config["schedule"]["name"]
        raise UserError(f"config.schedule '{name}' failed: {type(error).__name__}: {error}") from error
