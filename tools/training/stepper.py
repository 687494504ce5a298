"""Updates the weights: gradient accumulation, loss scale, clipping, skipped steps, EMA."""

import contextlib
import functools
import math
from typing import NamedTuple

import numpy as np
import paddle

from scheduler import format_rate, progress_of
from system import distributed
from training.checkpoint import capture, restore
from training.fast import draw_for
from training.threads import Threads
from weights.container import CheckpointError


class NotFinite(RuntimeError):
    """Too many consecutive steps with gradients that are not finite."""


class Batch(NamedTuple):
    """Results of one batch on this process; loss and correct stay on the device."""

    loss: paddle.Tensor       # mean over its images, float32
    correct: paddle.Tensor    # correctly classified images, float64
    images: int


class Groups:
    """The batches of an epoch in groups, with one optimizer step for each group.

    Args:
        sizes: images in each batch of this process.
        accumulate: batches in a group; the last group of an epoch may have fewer.
    """

    def __init__(self, sizes, accumulate=1):
        self.sizes = list(sizes)
        self.accumulate = accumulate

    def __len__(self):
        """Batches in an epoch."""
        return len(self.sizes)

    def bounds(self, step):
        """Return the first and the last batch of the group of batch `step`."""
        first = step - step % self.accumulate
        return first, min(first + self.accumulate, len(self.sizes)) - 1

    def share(self, step):
        """Return the number of images of batch `step` divided by that of its group."""
        first, last = self.bounds(step)
        return self.sizes[step] / sum(self.sizes[first:last + 1])

    def passes(self, step, number):
        """Return whether the group of batch `step` reaches a multiple of `number`, in batches."""
        first, last = self.bounds(step)
        return (last + 1) // number > first // number


class Stepper:
    """Updates the weights of a network with the gradients of groups of batches.

    A group whose gradients are not finite is skipped: weights, EMA and sums stay unchanged.
    Gradients are averaged over processes, so all processes skip the same groups.

    Args:
        network: the network, without wrappers.
        loss: called with (outputs, targets, images); returns the mean over the images.
        hits: called with (outputs, targets); returns a bool `[B]`, true where correct.
        optimizer: optimizer of the trainable parameters.
        schedule: a scheduler.Schedule.
        precision: a recipe.precision.Precision.
        clip: called with (parameters, loss_scale); unscales and clips the gradients and returns
            their unscaled norm before clipping.
        groups: the `Groups` of an epoch.
        ema: a recipe.ema.Ema, or None; it starts at the weights of rank 0.
        seed: seed of the run.
        first_epoch: epoch of the schedule in epoch 0 of the run.
        rate_update: 'step' or 'epoch': how often the learning rate changes.
        max_skipped: consecutive skipped steps before NotFinite.
        threads: number of threads that compute parts of a batch at the same time.
    """

    def __init__(self, network, loss, hits, optimizer, schedule, precision, clip, groups, ema=None,
                 seed=0, first_epoch=0, rate_update='epoch', max_skipped=10, threads=1):
        self.network, self.loss, self.hits = network, loss, hits
        self.optimizer, self.schedule, self.precision = optimizer, schedule, precision
        self.clip, self.groups, self.ema = clip, groups, ema
        self.seed, self.first_epoch, self.rate_update = seed, first_epoch, rate_update
        self.max_skipped = max_skipped
        self.trainable = [p for p in network.parameters() if not p.stop_gradient]
        self.single = precision.wrap(network)    # without DataParallel
        # DataParallel broadcasts the weights of rank 0, at which the EMA starts.
        self.model = (paddle.DataParallel(self.single) if distributed.world_size() > 1
                      else self.single)
        self.threads = Threads(network, threads) if threads > 1 else None
        self.evaluated = self.threads or self.single
        if ema:
            ema.start()
        self.group = []              # Batches since the last optimizer step
        self.skipped_steps = 0       # of the whole run
        self.consecutive_skipped = 0
        self.restored = None         # arrays of a checkpoint, until the first optimizer step
        self.has_stepped = False     # whether the run has made an optimizer step

    @property
    def rate(self):
        """Current learning rate."""
        return self.optimizer.get_lr()

    @property
    def in_group(self):
        """Whether gradients are accumulated that no optimizer step has used."""
        return bool(self.group)

    def begin_epoch(self, epoch, step=0):
        """Set the learning rate and training mode for batch `step` of an epoch."""
        self.schedule.step(self.progress(epoch, step))
        self.model.train()
        self.evaluated.train()

    def progress(self, epoch, step):
        """Return the progress of the schedule, in epochs."""
        return progress_of(epoch, step, len(self.groups), self.first_epoch, self.rate_update)

    def step(self, images, targets, epoch, step):
        """Compute the gradients of a batch; after the last batch of a group update the weights.

        Gradients are means over the images of a group, so a smaller last batch has less weight.

        Args:
            images: float32 `[B, 3, S, S]`, normalised.
            targets: labels `[B]`, or float32 `[B, num_classes]`.

        Returns:
            list of Batches: those of the group after its update, else empty.

        Raises:
            NotFinite: after `max_skipped` consecutive skipped steps.
        """
        first, last = self.groups.bounds(step)
        if self.rate_update == 'step' and step == first:
            self.schedule.step(self.progress(epoch, step))
        seed = step_seed(self.seed, distributed.rank(), epoch * len(self.groups) + step)
        paddle.seed(seed)
        # Gradients are averaged over processes only in the last batch of a group.
        local = step < last and distributed.world_size() > 1
        with self.model.no_sync() if local else contextlib.nullcontext():
            backward = functools.partial(self.backward, self.groups.share(step))
            if self.threads:
                results = self.threads.gradients(backward, seed, images, targets)
            else:
                with draw_for(seed, 0):
                    results = [backward(self.model, 1, images, targets)]
        loss, correct = map(sum, zip(*results))
        self.group.append(Batch(loss, correct, len(images)))
        return self.update(epoch, step) if step == last else []

    def backward(self, share_of_batch, model, share, images, targets):
        """Compute the gradients of a part of a batch.

        Args:
            share_of_batch, share: of the batch in its group, and of the part in the batch.

        Returns:
            (share of the part's loss in that of the batch, number of its correct images).
        """
        outputs = model(images)                                 # (B, num_classes), or two of them
        loss = self.loss(outputs, targets, images)
        self.precision.scaled(loss * (share * share_of_batch)).backward()
        return loss.detach() * share, self.hits(outputs, targets).astype('float64').sum()

    def update(self, epoch, step):
        """Update the weights with the gradients of the group, unless these are not finite."""
        # If the loss is not finite, the norm is not either. Reading the norm is the only
        # synchronisation with the device in a step.
        loss_scale = self.precision.loss_scale
        norm = self.clip(self.trainable, loss_scale=loss_scale.value)
        finite, group = math.isfinite(norm), self.group
        if finite:
            self.optimizer.step()
            self.restored, self.has_stepped, self.consecutive_skipped = None, True, 0
            if self.ema:
                self.ema.update(self.weights())
        else:
            self.skipped_steps += 1
            self.consecutive_skipped += 1
            if self.consecutive_skipped >= self.max_skipped:
                raise NotFinite(
                    f'{self.consecutive_skipped} steps in a row had gradients that are not finite '
                    f'(norm {norm}, loss {float(group[-1].loss)}) up to epoch {epoch}, step '
                    f'{step}, at learning rate {format_rate(self.rate)}, loss scale '
                    f'{loss_scale.value:g}')
        loss_scale.update(finite)
        self.group = []
        self.optimizer.clear_grad(set_to_zero=False)
        return group if finite else []

    def sizes(self):
        """Return the numbers of parameter tensors, of parameters, and of trainable parameters."""
        sizes = [(math.prod(p.shape), p.stop_gradient) for p in self.network.parameters()]
        return (len(sizes), sum(size for size, _ in sizes),
                sum(size for size, frozen in sizes if not frozen))

    def weights(self):
        """Return the state dict of the network in float32."""
        return self.precision.float32_state(self.network, self.optimizer)

    def averages(self):
        """Return the state dict of the EMA, or None without EMA."""
        return self.ema.average if self.ema else None

    def averaged(self):
        """Return a context manager in which the network has the EMA weights."""
        return self.ema.in_network()

    def capture(self):
        """Return (arrays, state) for a checkpoint; call it between two groups."""
        arrays = capture(self.network, self.optimizer, self.restored, self.ema)
        return arrays, dict(skipped_steps=self.skipped_steps,
                            loss_scale=self.precision.loss_scale.state())

    def restore(self, arrays, skipped_steps, loss_scale, path):
        """Restore what `capture` returned.

        Raises:
            CheckpointError: if it belongs to another network or optimizer.
        """
        restore(self.network, self.optimizer, arrays, path, self.ema)
        try:
            self.precision.loss_scale.restore(loss_scale, path)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        self.restored, self.skipped_steps = arrays, skipped_steps
        # Paddle creates optimizer state in the first step, but master weights before.
        self.has_stepped = any(name.startswith('optimizer/') and
                               not name.startswith('optimizer/master_weights/') for name in arrays)


def step_seed(seed, rank, step):
    """Return the seed of Paddle's generator for one step of one process, below 2 ** 31."""
    return int(np.random.SeedSequence((seed, rank, step)).generate_state(1)[0] >> 1)
