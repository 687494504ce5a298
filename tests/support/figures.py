"""Independent implementations in NumPy with which several tests compare."""

import math

import numpy as np


def largest_gap(values, distribution):
    """Kolmogorov-Smirnov: the largest gap between empirical and given distribution function."""
    values = np.sort(values)
    steps = np.arange(len(values) + 1) / len(values)
    expected = distribution(values)
    return max((steps[1:] - expected).max(), (expected - steps[:-1]).max())


def cubic(distance):
    """The cubic convolution kernel with a = -0.75 (Keys 1981), which PyTorch and Paddle use."""
    distance = abs(distance)
    if distance <= 1:
        return 1.25 * distance ** 3 - 2.25 * distance ** 2 + 1
    if distance < 2:
        return -0.75 * (distance ** 3 - 5 * distance ** 2 + 8 * distance - 4)
    return 0.0


def resize_matrix(old, new):
    """The matrix `[new, old]` of bicubic interpolation along one axis, without aligned corners."""
    matrix = np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * old / new - 0.5
        for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
            matrix[row, min(max(tap, 0), old - 1)] += cubic(centre - tap)
    return matrix


def state_of(network):
    """{name: ndarray} of a network's state dict."""
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}
