"""What steps the weights: accumulate gradients, scale, clip, skip what is not finite, average."""

import contextlib
import math
from typing import NamedTuple

import numpy as np
import paddle

from scheduler import format_rate
from system import distributed
from training.checkpoint import capture, restore
from weights.container import CheckpointError


class NotFinite(RuntimeError):
    """Too many steps in a row had gradients that are not finite."""


class Batch(NamedTuple):
    """What a batch of this process counts for; loss and correct stay on the device."""

    loss: paddle.Tensor       # mean over its images, float32
    correct: paddle.Tensor    # images of the right class, float64
    images: int


class Groups:
    """The batches of an epoch in groups, each of which makes one step of the optimizer.

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
        """First and last batch of the group that batch `step` belongs to."""
        first = step - step % self.accumulate
        return first, min(first + self.accumulate, len(self.sizes)) - 1

    def share(self, step):
        """The part of its group's images that batch `step` holds."""
        first, last = self.bounds(step)
        return self.sizes[step] / sum(self.sizes[first:last + 1])

    def passes(self, step, number):
        """Whether the group of batch `step` reaches a multiple of `number`, in batches."""
        first, last = self.bounds(step)
        return (last + 1) // number > first // number


class Stepper:
    """Moves the weights of a network by the gradients of groups of batches.

    A group whose gradients are not finite is skipped: weights, averages and sums stay as they are.
    Processes share their gradients, so all of them come to the same decision.

    Args:
        network: the bare network, which holds the weights.
        loss: called with (outputs, targets, images); returns the mean over the images.
        hits: called with (outputs, targets); returns a bool `[B]`, which images are right.
        optimizer: of what is trainable.
        schedule: the learning rate as a function of progress; see scheduler.Schedule.
        precision: how to compute; see recipe.precision.Precision.
        clip: called with (parameters, loss_scale): takes the scale out of the gradients, clips
            them, and returns their norm before that.
        groups: the epoch's `Groups`.
        ema: averages of the weights, or None; they begin with the first process's weights.
        seed: of the run.
        first_epoch: where the schedule stands in epoch 0.
        rate_moves: 'step' or 'epoch'.
        most_bad_steps: skipped steps in a row before NotFinite.
    """

    def __init__(self, network, loss, hits, optimizer, schedule, precision, clip, groups, ema=None,
                 seed=0, first_epoch=0, rate_moves='epoch', most_bad_steps=10):
        self.network, self.loss, self.hits = network, loss, hits
        self.optimizer, self.schedule, self.precision = optimizer, schedule, precision
        self.clip, self.groups, self.ema = clip, groups, ema
        self.seed, self.first_epoch, self.rate_moves = seed, first_epoch, rate_moves
        self.most_bad_steps = most_bad_steps
        self.trainable = [p for p in network.parameters() if not p.stop_gradient]
        self.single = precision.wrap(network)    # as one process calls it: for validation
        # Gives every process the weights of the first, which the averages begin with.
        self.model = (paddle.DataParallel(self.single) if distributed.world_size() > 1
                      else self.single)
        if ema:
            ema.start()
        self.group = []              # the Batches since the optimizer's step
        self.skipped_steps = 0       # in the whole run
        self.bad_steps_in_a_row = 0
        self.restored = None         # arrays of a checkpoint, until the optimizer's first step
        self.has_stepped = False     # the optimizer, in the whole run

    @property
    def rate(self):
        """The learning rate of the step before."""
        return self.optimizer.get_lr()

    @property
    def in_group(self):
        """Whether the optimizer's step is still to come: there is nothing to log or save yet."""
        return bool(self.group)

    def begin_epoch(self, epoch, step=0):
        """Get ready for batch `step` of an epoch."""
        self.schedule.step(self.progress(epoch, step))
        self.model.train()

    def progress(self, epoch, step):
        """Where the schedule stands, in epochs."""
        done = step / len(self.groups) if self.rate_moves == 'step' else 0
        return self.first_epoch + epoch + done

    def step(self, images, targets, epoch, step):
        """Learn from batch `step` of an epoch; the optimizer moves after the last of its group.

        Gradients are means over the group's images, so a smaller batch at the end of an epoch
        weighs less.

        Args:
            images: float32 `[B, 3, S, S]`, normalised.
            targets: labels `[B]`, or float32 `[B, num_classes]`.

        Returns:
            The Batches that the weights have learnt from now: those of the group with its last
            one, else none.

        Raises:
            NotFinite: after `most_bad_steps` in a row.
        """
        first, last = self.groups.bounds(step)
        if self.rate_moves == 'step' and step == first:
            self.schedule.step(self.progress(epoch, step))
        paddle.seed(step_seed(self.seed, distributed.rank(), epoch * len(self.groups) + step))
        # Processes share their gradients only with the last batch, when they are complete.
        alone = step < last and distributed.world_size() > 1
        with self.model.no_sync() if alone else contextlib.nullcontext():
            outputs = self.model(images)                        # (B, num_classes), or two of them
            loss = self.loss(outputs, targets, images)
            self.precision.scaled(loss * self.groups.share(step)).backward()
        hits = self.hits(outputs, targets)
        self.group.append(Batch(loss.detach(), hits.astype('float64').sum(), len(images)))
        return self.move(epoch, step) if step == last else []

    def move(self, epoch, step):
        """Move the weights by the group's gradients, unless these are not finite."""
        # A loss that is not finite leaves no finite norm. The norm is the one number a step that
        # the host waits for.
        loss_scale = self.precision.loss_scale
        norm = self.clip(self.trainable, loss_scale=loss_scale.value)
        finite, group = math.isfinite(norm), self.group
        if finite:
            self.optimizer.step()
            self.restored, self.has_stepped, self.bad_steps_in_a_row = None, True, 0
            if self.ema:
                self.ema.update(self.weights())
        else:
            self.skipped_steps += 1
            self.bad_steps_in_a_row += 1
            if self.bad_steps_in_a_row >= self.most_bad_steps:
                raise NotFinite(
                    f'{self.bad_steps_in_a_row} steps in a row had gradients that are not finite '
                    f'(norm {norm}, loss {float(group[-1].loss)}) up to epoch {epoch}, step '
                    f'{step}, at learning rate {format_rate(self.rate)}, loss scale '
                    f'{loss_scale.value:g}')
        loss_scale.update(finite)
        self.group = []
        self.optimizer.clear_grad()
        return group if finite else []

    def sizes(self):
        """How many parameter tensors, numbers in them, and numbers that train."""
        sizes = [(math.prod(p.shape), p.stop_gradient) for p in self.network.parameters()]
        return (len(sizes), sum(size for size, _ in sizes),
                sum(size for size, frozen in sizes if not frozen))

    def weights(self):
        """The network's state dict in float32."""
        return self.precision.float32_state(self.network, self.optimizer)

    def averages(self):
        """The averaged state dict; None where no averages are kept."""
        return self.ema.average if self.ema else None

    def averaged(self):
        """A context in which the network holds the averages."""
        return self.ema.in_network()

    def capture(self):
        """(arrays, state) for a checkpoint; to be called between two groups."""
        arrays = capture(self.network, self.optimizer, self.restored, self.ema)
        return arrays, dict(skipped_steps=self.skipped_steps,
                            loss_scale=self.precision.loss_scale.state())

    def restore(self, arrays, skipped_steps, loss_scale, path):
        """Go on from what `capture` gave.

        Raises:
            CheckpointError: where it belongs to another network or optimizer.
        """
        restore(self.network, self.optimizer, arrays, path, self.ema)
        try:
            self.precision.loss_scale.restore(loss_scale, path)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        self.restored, self.skipped_steps = arrays, skipped_steps
        # Paddle makes an optimizer's state in its first step; master weights are there before.
        self.has_stepped = any(name.startswith('optimizer/') and
                               not name.startswith('optimizer/master_weights/') for name in arrays)


def step_seed(seed, rank, step):
    """The seed of Paddle's generator for one step of one process, below 2 ** 31."""
    return int(np.random.SeedSequence((seed, rank, step)).generate_state(1)[0] >> 1)
