"""The style of all figures, sheets of images, and how a figure is written.

    with style.applied():
        figure = style.figure(height=4)
        figure.subplots().plot(...)
    style.save(figure, 'figure.svg')
"""

import os
from pathlib import Path

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

STYLE = Path(__file__).with_name('style.mplstyle')
COLOURS = matplotlib.rc_params_from_file(
    STYLE, use_default_template=False)['axes.prop_cycle'].by_key()['color']
MAX_LINES = len(COLOURS)
WIDTH = 9             # inches; at the 800 pixels of a README page a letter of size 9 has 11 pixels
SMALL = 9             # font size of captions
LINE = 1.4 / 72       # height of a line of text, inches for each point of its size
LONGEST_SIDE = 512    # of an image on a sheet, pixels
HIGHEST = 1.5         # height / width of the space for an image
PIXELS = 100          # of a picture in an inch of an SVG
FORMATS = ('.svg', '.png')


class FigureError(ValueError):
    """A figure that cannot be drawn or written. The message says what to do."""

    exit_code = 2


def applied(**settings):
    """Return the context in which figures are drawn; `settings` are further ones of Matplotlib."""
    return matplotlib.style.context([STYLE, settings])


def figure(height):
    """Return an empty Figure of the width of a page; `height` in inches."""
    return Figure(figsize=(WIDTH, height))


def sheet(rows):
    """Draw labelled images in rows.

    Args:
        rows: list of (label, tiles): the label stands left of a row, tiles are (image, caption), a
            PIL RGB image or uint8 `[H, W, 3]`, and a text of one or more lines above it. Images of
            more than LONGEST_SIDE pixels are scaled down.

    Returns:
        A Figure.
    """
    columns = max(len(tiles) for _, tiles in rows)
    side = WIDTH / (columns + 0.3)
    rows = [(label, [(scaled_down(image), caption) for image, caption in tiles])
            for label, tiles in rows]
    heights = [max(side * min(image.shape[0] / image.shape[1], HIGHEST)
                   + LINE * SMALL * (caption.count('\n') + 1.5)
                   for image, caption in tiles) for _, tiles in rows]
    with applied(**{'axes.grid': False}):
        drawn = figure(sum(heights))
        grid = drawn.add_gridspec(len(rows), columns, height_ratios=heights)
        for row, (label, tiles) in enumerate(rows):
            for column, (image, caption) in enumerate(tiles):
                axes = drawn.add_subplot(grid[row, column])
                axes.imshow(image)
                axes.set(xticks=[], yticks=[], anchor='N')
                axes.spines[:].set_visible(False)
                axes.set_title(literal(caption), fontsize=SMALL, pad=3)
                if not column:
                    axes.set_ylabel(literal(label), fontsize=SMALL)
    return drawn


def scaled_down(image):
    """Return an image, PIL or uint8 `[H, W, 3]`, as an array of at most LONGEST_SIDE pixels."""
    if max(np.shape(image)) > LONGEST_SIDE:
        image = Image.fromarray(np.asarray(image))
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return np.asarray(image)


def literal(text):
    """Return a text in which Matplotlib finds no formula."""
    return text.replace('$', r'\$')


def check_place(path):
    """Raise FigureError unless `path` ends in one of FORMATS and its folder can be written."""
    if not path.endswith(FORMATS):
        raise FigureError(f'--out {path}: end it in {" or ".join(FORMATS)}')
    if os.path.isdir(path) or not os.access(Path(path).parent, os.W_OK):
        raise FigureError(f'--out {path}: cannot be written; name a file in a folder that exists '
                          'and is writable')


def save_picture(picture, path):
    """Write a PIL image as .png, or as .svg that holds it pixel by pixel.

    Raises:
        FigureError: if it cannot be written.
    """
    try:
        if not path.endswith('.svg'):
            return picture.save(path)
    except OSError as error:
        raise FigureError(f'{path}: cannot be written ({error.strerror})') from error
    whole = Figure(figsize=[side / PIXELS for side in picture.size])
    axes = whole.add_axes((0, 0, 1, 1))
    axes.imshow(picture, aspect='auto')
    axes.set_axis_off()
    return save(whole, path)


def save(figure, path):
    """Write a figure as .svg or .png, by the end of its name.

    An SVG holds images as they are, pixel by pixel; a PNG scales them.

    Raises:
        FigureError: if it cannot be written.
    """
    check_place(path)
    if path.endswith('.svg'):
        for image in figure.findobj(AxesImage):
            image.set_interpolation('none')
    try:
        with applied():
            figure.savefig(path, metadata={'Date': None} if path.endswith('.svg') else None)
    except OSError as error:
        raise FigureError(f'--out {path}: cannot be written ({error.strerror})') from error
