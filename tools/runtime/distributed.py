"""Processes: the same calls work with one process and with many (one a card)."""

import paddle
import paddle.distributed as dist


def init():
    """Join the processes that paddle.distributed.launch started; nothing to do for one."""
    if world_size() > 1:
        dist.init_parallel_env()


def rank():
    """The number of this process, from 0."""
    return dist.get_rank()


def world_size():
    """How many processes work together."""
    return dist.get_world_size()


def is_main():
    """Whether this is the process that prints and saves."""
    return rank() == 0


def all_reduce_sum(values):
    """Sum a list of numbers over all processes, exactly for counts.

    Args:
        values: numbers, the same many on every process.

    Returns:
        list of float.
    """
    if world_size() == 1:
        return [float(value) for value in values]
    tensor = paddle.to_tensor([float(value) for value in values], dtype='float64')
    dist.all_reduce(tensor)
    return tensor.tolist()


def gather_rows(tensor):
    """Join the rows of all processes in rank order: `[B, ...]` to `[world_size * B, ...]`.

    Every process must bring the same number of rows: an uneven all_gather gives garbage.
    """
    if world_size() == 1:
        return tensor
    parts = []
    dist.all_gather(parts, tensor)
    return paddle.concat(parts, axis=0)
