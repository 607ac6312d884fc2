"""A judge: a classifier of real pictures or sounds, whose verdicts on generated ones are shown beside its own held-out accuracy."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from vae_jax import fronts
from vae_jax.config import Config, UserError
from vae_jax.layers.convolutions import Conv
from vae_jax.tasks import Move, Task


@dataclasses.dataclass
class Model:
    channels: tuple[int, ...] = (32, 64)  # stride-2 convolutions
    hidden: int = 128  # width of the features in front of the classes
    smoothing: float = 0.05  # of the labels, so that confidences mean something
    label: str = "label"  # the field whose classes are told apart: label, speaker
    sound: fronts.Sound = dataclasses.field(default_factory=fronts.Sound)


class Classifier(nn.Module):
    channels: tuple[int, ...]
    hidden: int
    classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_bhwc):
        x = x_bhwc.astype(self.dtype)
        for channels in self.channels:
            x = nn.relu(Conv(channels, stride=2, dtype=self.dtype)(x))
        features = nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.classes)(features.astype(jnp.float32)), features


def make(config: Config, spec) -> Task:
    m = config.model
    labels = spec.fields[m.label].labels if m.label in spec.fields else ()
    if not labels:
        raise UserError(f"{config.data.dir} has no classes in a field {m.label!r}, so there is nothing to classify; "
                        "prepare it from sub-folders named by class.")
    front = fronts.get(spec, m.sound, 2 ** len(m.channels))
    net = Classifier(m.channels, m.hidden, len(labels), jnp.dtype(config.dtype))

    def init(key, batch):
        return {"classifier": net.init(key, front.analyse(batch))}, {}

    def loss(params, variables, batch, key, step):
        logits, _ = net.apply(params["classifier"], front.analyse(batch))
        targets = optax.smooth_labels(jax.nn.one_hot(batch[m.label], len(labels)), m.smoothing)
        value = optax.softmax_cross_entropy(logits, targets).mean()
        return value, (variables, {"loss": value, "accuracy": jnp.mean(jnp.argmax(logits, -1) == batch[m.label])})

    def metrics(params, variables, batch, key):
        logits, _ = net.apply(params["classifier"], front.analyse(batch))
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch[m.label])
        return {"loss": nll, "accuracy": (jnp.argmax(logits, -1) == batch[m.label]).astype(jnp.float32)}

    def encode(params, variables, batch):
        logits, features = net.apply(params["classifier"], front.analyse(batch))
        return {"mean": features, "logits": logits}

    return Task(init=init, moves={"train": Move(("classifier",), loss)}, schedule=lambda step: ("train",), metrics=metrics,
                summary=lambda sums, squares, count: {k: v / count for k, v in sums.items()}, encode=encode, front=front)

