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


def texture(height, width, seed=0):
    """A uint8 [height, width, 3] image with the spectrum of photographs, and edges.

    The amplitude falls with the frequency, so there is detail at every scale.
    """
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    shared = rng.standard_normal((height, width))
    channels = [np.fft.irfft2(np.fft.rfft2(shared + 0.15 * rng.standard_normal((height, width)))
                              / frequency ** 1.2, (height, width)) for _ in range(3)]
    pixels = np.stack([128 + 50 * channel / channel.std() for channel in channels], axis=-1)
    pixels[height // 4:height // 2, width // 3:width // 2] += 60
    return pixels.clip(0, 255).astype(np.uint8)
