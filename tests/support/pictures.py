"""Images made for tests."""

import numpy as np
from PIL import Image


def picture(height, width, seed=0):
    """A smooth uint8 [height, width, 3] image with every channel different."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def write_jpegs(folder, count):
    """Write images 0.jpg, 1.jpg, ... and return samples whose label is that number."""
    samples = []
    for number in range(count):
        path = folder / f'{number}.jpg'
        Image.fromarray(picture(40, 48, seed=number)).save(path)
        samples.append((str(path), number))
    return samples
