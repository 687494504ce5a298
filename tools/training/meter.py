"""What counts: sums over an epoch's images, of all processes, and where the time goes."""

import math
import time

import paddle

from system import distributed


class Meter:
    """Sums over the images of an epoch that the weights have learnt from.

    Args:
        loss_sum, correct, seen: where they stand, as `state()` gave it.
    """

    def __init__(self, loss_sum=0.0, correct=0.0, seen=0.0):
        self.loss_sum, self.correct, self.seen = loss_sum, correct, seen
        self.pending = []    # batches that are not in the sums yet

    def add(self, batches):
        """Count Batches of this process; what they hold stays on the device for now."""
        self.pending += batches

    def state(self):
        """The sums, as a checkpoint holds them. All processes call it together.

        Batches are added one after the other, in float64: so the sums don't depend on when this
        is called, and a run that was stopped anywhere logs the same figures. With another number
        of processes they are equal up to rounding: a batch's mean is taken over other images.
        """
        if self.pending:
            flat = [float(value) for loss, correct, images in self.pending
                    for value in (float(loss) * images, float(correct), images)]
            totals = iter(distributed.all_reduce_sum(flat))
            for loss_sum, correct, seen in zip(totals, totals, totals):
                self.loss_sum += loss_sum
                self.correct += correct
                self.seen += seen
            self.pending = []
        return dict(loss_sum=self.loss_sum, correct=self.correct, seen=self.seen)

    def means(self):
        """Mean loss and accuracy, nan before the first image. All processes call it together.

        Accuracy is that of the network as it trains; a mixed image counts as its larger part.
        """
        sums = self.state()
        seen = sums['seen'] or math.nan
        return sums['loss_sum'] / seen, sums['correct'] / seen


class Clock:
    """Where the time of some steps goes: reading or training."""

    def __init__(self):
        self.restart()

    def restart(self):
        self.started = self.waiting_since = time.perf_counter()
        self.read_time = 0.0
        self.steps = self.images = 0

    def has_read(self):
        self.read_time += time.perf_counter() - self.waiting_since

    def has_trained(self, images):
        self.steps += 1
        self.images += images
        self.waiting_since = time.perf_counter()

    def lap(self):
        """Means over the steps since the last lap, after which it counts anew.

        Returns:
            dict: read_time and train_time of a step, in seconds, and images_per_second of all
            processes.
        """
        if paddle.device.is_compiled_with_cuda():
            paddle.device.cuda.synchronize()
        elapsed = time.perf_counter() - self.started
        means = dict(read_time=self.read_time / self.steps,
                     train_time=(elapsed - self.read_time) / self.steps,
                     images_per_second=self.images * distributed.world_size() / elapsed)
        self.restart()
        return means
