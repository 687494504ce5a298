"""Images with their predicted classes, for VisualDL: a grid is drawn at each validation of a run.

Pillow draws it in a few milliseconds; Matplotlib, which draws the other figures, takes a second.
"""

import io
import math
from pathlib import Path

import numpy as np
import paddle
from paddle.nn import functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps

SIDE, LINE, GAP = 112, 16, 6    # pixels of an image, a line of text, a gap
# Right and wrong; also told apart by colour-blind people, and by the text.
RIGHT, WRONG = (0, 114, 178), (213, 94, 0)


class ImageGrid:
    """Predictions for a few images of a validation, drawn as a grid.

    Args:
        total: images of the data set.
        count: images to show, spread evenly over the data set.
    """

    def __init__(self, total, count):
        self.chosen = np.unique(np.linspace(0, total - 1, min(count, total)).astype(int))
        self.seen, self.errors = 0, {}
        self.predictions = []    # (index, label, predicted class, its probability)

    def add(self, logits, labels):
        """Add a batch: logits `[B, num_classes]`, labels `[B]`, -1 for an unreadable image."""
        places = self.chosen[(self.chosen >= self.seen) & (self.chosen < self.seen + len(labels))]
        for index in places.tolist():
            row = index - self.seen
            label, probabilities = int(labels[row]), F.softmax(logits[row], axis=0)
            if label >= 0:
                best = int(paddle.argmax(probabilities))
                self.predictions.append((index, label, best, float(probabilities[best])))
        self.seen += len(labels)

    def draw(self, read, names=()):
        """Return the picture as JPEG, or None without images.

        Below each image stand the predicted class with its probability and, if it is wrong, the
        class of the label.

        Args:
            read: returns the PIL image of an index of the data set.
            names: class names, or empty.
        """
        if not self.predictions:
            return None
        columns = math.ceil(math.sqrt(2 * len(self.predictions)))    # fills VisualDL's frame
        rows = math.ceil(len(self.predictions) / columns)
        width, height = SIDE + GAP, SIDE + 2 * LINE + GAP
        sheet = Image.new('RGB', (columns * width + GAP, rows * height + GAP), 'white')
        pen, font = ImageDraw.Draw(sheet), load_font()

        def write(text, x, y, colour):
            while font.getlength(text) > SIDE:
                text = f'{text.rstrip("…")[:-1]}…'
            pen.text((x, y), text, colour, font)

        for place, (index, label, best, probability) in enumerate(self.predictions):
            x, y = GAP + place % columns * width, GAP + place // columns * height
            colour = RIGHT if best == label else WRONG
            sheet.paste(ImageOps.fit(read(index), (SIDE, SIDE)), (x, y))
            pen.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), outline=colour, width=2)
            write(f'{probability:.0%} {class_name(best, names)}', x, y + SIDE, colour)
            if best != label:
                write(f'is {class_name(label, names)}', x, y + SIDE + LINE, 'black')
        file = io.BytesIO()
        # A PNG of photographs is several times larger. Coloured text needs all of its colours.
        sheet.save(file, 'JPEG', quality=85, subsampling=0)
        return file.getvalue()


def class_name(label, names):
    """Return the first of the names of a class, or its number."""
    return names[label].split(',')[0] if names else f'class {label}'


def load_font():
    """Return matplotlib's font: that of Pillow has no letters beyond Latin ones."""
    import matplotlib  # slow to import

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), 'fonts/ttf/DejaVuSans.ttf')), 12)
