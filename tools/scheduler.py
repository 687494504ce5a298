"""The learning rate, a pure function of progress, and a thin Paddle scheduler around it."""

import math

from paddle.optimizer.lr import LRScheduler


def learning_rate(progress, base_lr, warmup_epochs, warmup_start_lr, end_lr, total_epochs,
                  decay='cosine', decay_from='warmup'):
    """Linear warm-up from `warmup_start_lr` to `base_lr`, then decay to `end_lr`.

    Args:
        progress: position in the schedule, in epochs; a fraction inside an epoch is fine.
        warmup_epochs: length of the warm-up, in epochs.
        total_epochs: where `end_lr` is reached, warm-up included; the rate stays there.
        decay: 'cosine' (half a wave) or 'linear'.
        decay_from: where the way down is counted from: 'warmup', its end, or 'start', epoch 0.
            The official recipe does the latter, so that its rate, at the end of the warm-up,
            joins a cosine that is already under way.
    """
    if progress < warmup_epochs:
        return warmup_start_lr + (base_lr - warmup_start_lr) * progress / warmup_epochs
    first = warmup_epochs if decay_from == 'warmup' else 0
    way = (progress - first) / max(1, total_epochs - first)
    way = min(way, 1.0)
    remaining = 0.5 * (1 + math.cos(math.pi * way)) if decay == 'cosine' else 1 - way
    return end_lr + (base_lr - end_lr) * remaining


def constant_rates(progress, rows):
    """The rate of the last of `rows`, (first epoch, rate) each, that has begun at `progress`."""
    return [rate for first, rate in rows if first <= progress][-1]


class Schedule(LRScheduler):
    """Hands a rate function to Paddle's optimizers; `step(progress)` moves it.

    Args:
        rate: function from progress, in epochs, to the learning rate.
        progress: where the schedule starts.
    """

    def __init__(self, rate, progress=0.0):
        self.rate = rate
        self.following = []
        super().__init__(learning_rate=rate(progress))
        self.step(progress)

    def get_lr(self):
        return self.rate(self.last_epoch)

    def follow(self, parameters, scaled_rate):
        """Let the rates of parameters be more than a constant factor apart.

        Args:
            parameters: of the optimizer; each one's factor on the rate is its scale.
            scaled_rate: function from (progress, scale) to the rate of parameters with a scale.
        """
        self.scaled_rate = scaled_rate
        self.following = [(p, p.optimize_attr['learning_rate']) for p in parameters]
        self.step(self.last_epoch)

    def step(self, epoch=None):
        super().step(epoch)
        for parameter, scale in self.following:
            # Paddle multiplies this with the rate at every step; at a rate of 0 any factor will do.
            factor = self.scaled_rate(self.last_epoch, scale) / self.last_lr if self.last_lr else 1
            parameter.optimize_attr['learning_rate'] = factor


def format_rate(rate):
    """A learning rate as published logs of the Paddle repository print it.

    Four decimals from 0.0005 on, which change it by a tenth at most, and wherever they are exact:
    0.0010, 0.0009, 0.0003. Else six (0.000201, 0.000075, 0.000050), or as many as two significant
    digits need (0.0000015).
    """
    four = f'{rate:.4f}'
    if rate >= 5e-4 or math.isclose(float(four), rate):
        return four
    decimals = max(6, 1 - math.floor(math.log10(rate)))
    text = f'{rate:.{decimals}f}'
    return text[:8] + text[8:].rstrip('0')
