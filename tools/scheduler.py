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


class Schedule(LRScheduler):
    """Hands a rate function to Paddle's optimizers; `step(progress)` moves it.

    Args:
        rate: function from progress, in epochs, to the learning rate.
        progress: where the schedule starts.
    """

    def __init__(self, rate, progress=0.0):
        self.rate = rate
        super().__init__(learning_rate=rate(progress))
        self.step(progress)

    def get_lr(self):
        return self.rate(self.last_epoch)


def format_rate(rate):
    """A learning rate with four decimals, and more where four would hide it: 0.000025."""
    decimals = 4
    if rate > 0:
        decimals = max(decimals, 3 - math.floor(math.log10(rate)))    # four significant digits
    whole, _, fraction = f'{rate:.{decimals}f}'.partition('.')
    return f'{whole}.{fraction.rstrip("0"):0<4}'
