"""Mean loss and accuracy over the images of an epoch, and times of its steps."""

import math
import time

import paddle

from system import distributed


class Meter:
    """Sums over the images of an epoch, except those of skipped steps.

    Args:
        loss_sum, correct, seen: initial sums, from `state()`.
    """

    def __init__(self, loss_sum=0.0, correct=0.0, seen=0.0):
        self.loss_sum, self.correct, self.seen = loss_sum, correct, seen
        self.pending = []    # batches not yet in the sums,
        self.flat = []       # and those of them that have been read from the device

    def add(self, batches):
        """Add Batches of this process; their tensors stay on the device until they are needed."""
        self.pending += batches

    def read(self):
        """Return loss sum, correct and images of each batch not yet in the sums, in one list."""
        self.flat += [float(value) for loss, correct, images in self.pending
                      for value in (float(loss) * images, float(correct), images)]
        self.pending = []
        return self.flat

    def state(self):
        """Return the sums over all processes, for a checkpoint. All processes must call this.

        Batches are added one after the other in float64. So the sums do not depend on when this
        is called, and a resumed run logs the same values. For another number of processes they are
        equal up to rounding, because the mean of a batch is over other images.

        Returns:
            dict: loss_sum, correct, seen.
        """
        if self.read():
            totals = iter(distributed.all_reduce_sum(self.flat))
            for loss_sum, correct, seen in zip(totals, totals, totals):
                self.loss_sum += loss_sum
                self.correct += correct
                self.seen += seen
            self.flat = []
        return dict(loss_sum=self.loss_sum, correct=self.correct, seen=self.seen)

    def means(self):
        """Return (mean loss, accuracy); nan before the first image. All processes must call this.

        The accuracy is that of the training mode; a mixed image has the label of its larger part.
        """
        sums = self.state()
        seen = sums['seen'] or math.nan
        return sums['loss_sum'] / seen, sums['correct'] / seen

    def estimate(self):
        """Return `means()` without the batches of other processes since `state()`.

        A single process can call this at any time.
        """
        flat = self.read()
        seen = self.seen + sum(flat[2::3]) or math.nan
        return (self.loss_sum + sum(flat[::3])) / seen, (self.correct + sum(flat[1::3])) / seen


class Clock:
    """Measures the reading and the training time of steps."""

    def __init__(self):
        self.restart()

    def restart(self):
        """Start measuring anew."""
        self.started = self.waiting_since = time.perf_counter()
        self.read_time = 0.0
        self.steps = self.images = 0

    def has_read(self):
        """Call when a batch has been read."""
        self.read_time += time.perf_counter() - self.waiting_since

    def has_trained(self, images):
        """Call after a step on a batch of `images` images."""
        self.steps += 1
        self.images += images
        self.waiting_since = time.perf_counter()

    def lap(self):
        """Return means over the steps since the last call, and restart.

        Returns:
            dict: read_time and train_time in seconds per step; images_per_second of all processes.
        """
        if paddle.device.is_compiled_with_cuda():
            paddle.device.cuda.synchronize()
        elapsed = time.perf_counter() - self.started
        means = dict(read_time=self.read_time / self.steps,
                     train_time=(elapsed - self.read_time) / self.steps,
                     images_per_second=self.images * distributed.world_size() / elapsed)
        self.restart()
        return means
