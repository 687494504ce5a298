"""The learning rate as a pure function of progress, and a Paddle scheduler that uses it."""

import math

from paddle.optimizer.lr import LRScheduler


def learning_rate(progress, base_lr, warmup_epochs, warmup_start_lr, end_lr, total_epochs,
                  decay='cosine', decay_from='warmup'):
    """Linear warm-up from `warmup_start_lr` to `base_lr`, then decay to `end_lr`.

    Args:
        progress: position in the schedule, in epochs; may be fractional.
        warmup_epochs: length of the warm-up, in epochs.
        total_epochs: epoch at which `end_lr` is reached, warm-up included; constant afterwards.
        decay: 'cosine' (half a period) or 'linear'.
        decay_from: where the decay begins: 'warmup', at the end of the warm-up, or 'start', at
            epoch 0, as in the official recipe, whose rate falls after the warm-up to the value
            that the cosine has reached by then.
    """
    if progress < warmup_epochs:
        return warmup_start_lr + (base_lr - warmup_start_lr) * progress / warmup_epochs
    first = warmup_epochs if decay_from == 'warmup' else 0
    passed = min((progress - first) / max(1, total_epochs - first), 1.0)
    remaining = 0.5 * (1 + math.cos(math.pi * passed)) if decay == 'cosine' else 1 - passed
    return end_lr + (base_lr - end_lr) * remaining


def constant_rates(progress, rows):
    """The rate at `progress` (in epochs) of a step schedule: rows of (first epoch, rate)."""
    return [rate for first, rate in rows if first <= progress][-1]


def progress_of(epoch, step, steps, first_epoch=0, update='epoch'):
    """The position in the schedule, in epochs, of a batch of a run.

    Args:
        step, steps: number of the batch in the epoch, from 0, and batches in an epoch.
        first_epoch: epoch of the schedule in epoch 0 of the run.
        update: 'step' or 'epoch': how often the learning rate changes.
    """
    return first_epoch + epoch + (step / steps if update == 'step' else 0)


class Schedule(LRScheduler):
    """A rate function as a scheduler for Paddle's optimizers; `step(progress)` sets the rate.

    Args:
        rate: function from progress, in epochs, to the learning rate.
        progress: initial position, in epochs.
    """

    def __init__(self, rate, progress=0.0):
        self.rate = rate
        self.following = []
        super().__init__(learning_rate=rate(progress))
        self.step(progress)

    def get_lr(self):
        return self.rate(self.last_epoch)

    def follow(self, parameters, scaled_rate):
        """Give parameters schedules that are not multiples of the base rate.

        Args:
            parameters: of the optimizer; the scale of each is its `optimize_attr` factor.
            scaled_rate: function from (progress, scale) to the learning rate.
        """
        self.scaled_rate = scaled_rate
        self.following = [(p, p.optimize_attr['learning_rate']) for p in parameters]
        self.step(self.last_epoch)

    def step(self, epoch=None):
        super().step(epoch)
        for parameter, scale in self.following:
            # Paddle multiplies this factor by the base rate; at a rate of 0 it has no effect.
            factor = self.scaled_rate(self.last_epoch, scale) / self.last_lr if self.last_lr else 1
            parameter.optimize_attr['learning_rate'] = factor


def format_rate(rate):
    """Format a learning rate as the published logs of the Paddle repository do.

    Four decimals from 0.0005 on and where they are exact: 0.0010, 0.0009, 0.0003. Otherwise six
    (0.000201, 0.000075, 0.000050), or as many as two significant digits need (0.0000015).
    """
    four = f'{rate:.4f}'
    if rate >= 5e-4 or math.isclose(float(four), rate):
        return four
    decimals = max(6, 1 - math.floor(math.log10(rate)))
    text = f'{rate:.{decimals}f}'
    return text[:8] + text[8:].rstrip('0')
