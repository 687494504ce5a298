"""A quick way from a JPEG to a resized part of it: decode what a crop needs, then resize that.

`DATA.DECODER=fast` uses it for training. The exact way is data.decode; evaluation knows no other.

libjpeg-turbo decodes, through simplejpeg, whose wheels for Linux, macOS and Windows contain it.
(PyTurboJPEG needs one that is installed in the system, and OpenCV's decoder is not as quick.)
OpenCV resizes, because its filters use SIMD instructions and Pillow's do not.

Compared with decoding all pixels, these are saved:
- the rows below the crop: a baseline JPEG is coded from top to bottom, and if the height in its
  header is reduced, the decoder stops there;
- where the crop has at least twice the side of the result, the high frequencies: libjpeg then
  computes a half, a quarter or an eighth of the pixels in each direction;
- accuracy that nobody sees: libjpeg's fastest DCT and upsampling of colours.

Results differ from the exact ones by less than 2 of 255 in the mean; `tools/benchmark.py --parts
loader` measures it.
"""

import numpy as np
from PIL import Image

from data import DataError
from data.decode import decode_bytes

START_OF_IMAGE = b'\xff\xd8'
END_OF_IMAGE = b'\xff\xd9'
START_OF_SCAN = 0xda
BASELINE = (0xc0, 0xc1)    # frames that are coded from top to bottom
SCALES = (8, 4, 2)


def libraries():
    """Return the modules simplejpeg and cv2.

    Raises:
        DataError: if one of them is not installed.
    """
    try:
        import cv2
        import simplejpeg
    except ImportError as error:
        raise DataError(f"DATA.DECODER fast cannot be used ({error}): install simplejpeg and "
                        "opencv-python-headless, or choose exact") from error
    cv2.setNumThreads(0)    # forked workers would wait for threads that they don't have
    return simplejpeg, cv2


def open_jpeg(data, name):
    """Return a Jpeg, or None if the exact way has to be taken.

    That is for other formats, for progressive, CMYK and truncated JPEGs, and for huge ones.

    Args:
        data: the bytes of an image file.
        name: the image's name in messages.
    """
    if not data.startswith(START_OF_IMAGE):
        return None
    at, frame = 2, None
    while at + 10 < len(data) and data[at] == 0xff and data[at + 1] != START_OF_SCAN:
        if data[at + 1] in BASELINE:
            frame = at
        at += 2 + int.from_bytes(data[at + 2:at + 4], 'big')
    # A frame: marker, length (2 bytes), bits, height (2), width (2), channels. A scan: marker,
    # length (2), channels: if it has them all, there is no other one.
    if (frame is None or at + 10 >= len(data) or data[at] != 0xff
            or data[frame + 4] != 8 or data[frame + 9] not in (1, 3)
            or data[at + 4] != data[frame + 9] or data.rfind(END_OF_IMAGE) < at):
        return None
    image = Jpeg(data, name, frame + 5)
    width, height = image.size
    return image if 0 < width * height <= Image.MAX_IMAGE_PIXELS else None


class Jpeg:
    """A baseline JPEG, grey or in colours, that is not decoded yet.

    Args:
        data: the bytes of the file.
        name: the image's name in messages.
        height_at: offset of the height in the header; the width follows it.

    Attributes:
        size: (width, height), pixels.
    """

    def __init__(self, data, name, height_at):
        self.data, self.name, self.height_at = data, name, height_at
        self.size = tuple(int.from_bytes(data[at:at + 2], 'big')
                          for at in (height_at + 2, height_at))

    def resized_crop(self, box, size, resampling):
        """Resize a part of the image.

        Args:
            box: (left, top, right, bottom), pixels.
            size: (width, height) of the result, pixels.
            resampling: Pillow's filter, bilinear or bicubic.

        Returns:
            uint8 [height, width, 3].

        Raises:
            ImageError: as data.decode.decode_bytes does.
        """
        left, top, right, bottom = box
        shrink = min((right - left) / size[0], (bottom - top) / size[1])
        scale = next((scale for scale in SCALES if scale <= shrink), 1)
        try:
            pixels = self._decode(bottom, scale)
        except (ValueError, RuntimeError):    # not for this decoder: Pillow decides
            return np.asarray(self.decoded().crop(box).resize(size, resampling))
        if scale > 1:    # the box has edges between pixels, which only Pillow's resize allows for
            return np.asarray(Image.fromarray(pixels).resize(
                size, resampling, [edge / scale for edge in box]))
        return resize(pixels[top:bottom, left:right], size, resampling)

    def decoded(self):
        """The whole image, decoded the exact way: a PIL image of mode RGB."""
        return decode_bytes(self.data, self.name)

    def _decode(self, bottom, scale):
        """Decode the rows above `bottom`, at 1 / scale of the size, to uint8 [H, W, 3]."""
        simplejpeg, _ = libraries()
        width, height = self.size
        height = min(height, bottom)
        data = bytearray(self.data)
        data[self.height_at:self.height_at + 2] = height.to_bytes(2, 'big')
        height, width = -(-height // scale), -(-width // scale)
        # Without `strict` it behaves like Pillow: it decodes what it can of damaged data, and
        # ignores what follows the last row.
        pixels = simplejpeg.decode_jpeg(data, 'RGB', fastdct=True, fastupsample=True, strict=False,
                                        min_height=height, min_width=width, min_factor=scale)
        if pixels.shape != (height, width, 3):
            raise ValueError(f'{pixels.shape} instead of {(height, width, 3)}')
        return pixels


def mirror(pixels):
    """Flip uint8 [H, W, 3] horizontally."""
    _, cv2 = libraries()
    return cv2.flip(pixels, 1)


def copy_planes(image, out):
    """Copy a view [3, H, W] of uint8 pixels [H, W, 3] to out [3, H, W], as np.copyto does.

    NumPy takes longer, as it copies single bytes.
    """
    _, cv2 = libraries()
    if image.dtype == out.dtype == np.uint8 and image.shape == out.shape:
        cv2.split(image.transpose(1, 2, 0), list(out))
    else:    # NumPy raises what is wrong
        np.copyto(out, image, casting='no')


def resize(pixels, size, resampling):
    """Resize uint8 [H, W, 3] to size (width, height), antialiased like Pillow's resize.

    Where Pillow shrinks an image, it widens its filters, and OpenCV does not. Here a filter
    (a, 1 - 2a, a) precedes OpenCV's, with which the variance of the two bilinear filters is equal:
    it is s^2 / 6 square pixels for Pillow's at a scale of 1 / s, 1 / 6 for OpenCV's, and 2a.
    """
    _, cv2 = libraries()
    height, width, _ = pixels.shape
    a_of = [max((source / target) ** 2 - 1, 0) / 12
            for source, target in ((width, size[0]), (height, size[1]))]
    if max(a_of) > 1 / 3:    # three pixels are too few
        return np.asarray(Image.fromarray(pixels).resize(size, resampling))
    if max(a_of) > 0:
        kernels = [np.array([a, 1 - 2 * a, a]) for a in a_of]
        pixels = cv2.sepFilter2D(pixels, -1, *kernels, borderType=cv2.BORDER_REPLICATE)
    bilinear = resampling == Image.Resampling.BILINEAR
    return cv2.resize(pixels, size,
                      interpolation=cv2.INTER_LINEAR if bilinear else cv2.INTER_CUBIC)
