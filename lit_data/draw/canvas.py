"""Colours, outlines, and a canvas to draw them on.

Every drawer uses its own coordinates ("frame"): x to the right and y downwards, both from -1 to 1.
A placement maps the frame to pixels, with scale, rotation, shear and perspective. Objects are drawn
OVERSAMPLE times larger and then reduced, which smooths their edges.
"""

import colorsys
import math
from copy import copy

from PIL import Image, ImageChops, ImageDraw, ImageFilter

OVERSAMPLE = 3
WHITE, BLACK = (250, 250, 248), (24, 24, 28)

# Strokes of letters and digits on a grid 2 wide and 4 high; a point is two digits "xy". Fonts are
# not used: they differ between machines.
GLYPHS = {
    '0': ('00 20 24 04 00',), '1': ('01 10 14',), '2': ('00 20 22 02 04 24',),
    '3': ('00 20 24 04', '02 22'), '4': ('00 02 22', '20 24'), '5': ('20 00 02 22 24 04',),
    '6': ('20 00 04 24 22 02',), '7': ('00 20 14',), '8': ('00 20 24 04 00', '02 22'),
    '9': ('22 02 00 20 24 04',), 'A': ('04 01 10 21 24', '02 22'), 'C': ('20 00 04 24',),
    'E': ('20 00 04 24', '02 22'), 'H': ('00 04', '20 24', '02 22'), 'I': ('10 14',),
    'L': ('00 04 24',), 'N': ('04 00 24 20',), 'O': ('00 20 24 04 00',),
    'P': ('04 00 20 22 02',), 'R': ('04 00 20 22 02', '12 24'), 'T': ('00 20', '10 14'),
    'U': ('00 04 24 20',), 'V': ('00 14 20',), 'X': ('00 24', '20 04'),
}


# Colours: (red, green, blue), each 0 to 255.

def hsv(hue, saturation, value):
    """The RGB colour of hue, saturation and value, each 0 to 1."""
    channels = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return tuple(round(255 * channel) for channel in channels)


def tint(color, amount):
    """`color` blended with white (amount 0 to 1) or black (amount -1 to 0)."""
    target = 255 if amount > 0 else 0
    return tuple(round(channel + (target - channel) * abs(amount)) for channel in color)


def paint(random):
    """A random colour of any hue: vivid, pale, dark or nearly grey."""
    saturation, value = random.choice(
        [(0.85, 0.9), (0.75, 0.75), (0.35, 0.95), (0.7, 0.45), (0.1, 0.95), (0.08, 0.35)])
    return hsv(random.random(), saturation * random.uniform(0.8, 1.1),
               min(1, value * random.uniform(0.9, 1.1)))


def mostly(random, usual, share=0.7):
    """One of the `usual` colours or palettes with probability `share`, else None."""
    return random.choice(usual) if random.random() < share else None


def palette(random, count):
    """`count` random colours; each differs clearly from the previous and the first one."""
    colors = [paint(random)]
    while len(colors) < count:
        color = paint(random)
        if distance(color, colors[-1]) > 130 and distance(color, colors[0]) > 130:
            colors.append(color)
    return colors


def distance(one, other):
    """Euclidean distance of two RGB colours, 0 to 442."""
    return math.dist(one, other)


# Outlines: lists of (x, y).

def ellipse(x, y, width, height, start=0, end=360):
    """The outline of an ellipse with half axes `width` and `height`; start and end in degrees."""
    steps = max(8, abs(end - start) // 6)
    angles = [math.radians(start + (end - start) * step / steps) for step in range(steps + 1)]
    return [(x + width * math.cos(angle), y + height * math.sin(angle)) for angle in angles]


def box(left, top, right, bottom):
    """The corners of a rectangle."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def curve(points, closed=True):
    """A smooth line through `points`: a Catmull-Rom spline with eight steps for each segment."""
    if not closed:
        points = [points[0], *points, points[-1]]
    count, smooth = len(points), []
    for index in range(count) if closed else range(1, count - 2):
        a, b, c, d = (points[(index + offset) % count] for offset in (-1, 0, 1, 2))
        for step in range(8):
            t = step / 8
            smooth.append(tuple(
                b[i] + 0.5 * t * (c[i] - a[i] + t * (2 * a[i] - 5 * b[i] + 4 * c[i] - d[i]
                                                     + t * (3 * b[i] - a[i] - 3 * c[i] + d[i])))
                for i in (0, 1)))
    return smooth if closed else [*smooth, points[-1]]


def symmetric(right):
    """A closed outline, symmetric about x = 0, from its right half, listed from top to bottom."""
    return right + [(-x, y) for x, y in reversed(right)]


def moved(points, x, y, size=1.0, degrees=0.0):
    """`points` scaled and rotated about the origin, then translated by (x, y)."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [(x + size * (cosine * a - sine * b), y + size * (sine * a + cosine * b))
            for a, b in points]


def blob(random, x, y, radius, roughness=0.25):
    """A round outline whose radius varies by the fraction `roughness`."""
    count = 9
    radii = [radius * random.uniform(1 - roughness, 1 + roughness) for _ in range(count)]
    return curve([(x + r * math.cos(math.tau * i / count), y + r * math.sin(math.tau * i / count))
                  for i, r in enumerate(radii)])


def placement(center, scale, degrees=0.0, shear=0.0, lean=(0.0, 0.0), mirror=1):
    """A function from a point of the frame to pixel coordinates (x, y).

    `scale` is in pixels per unit of the frame; `lean` is the strength of perspective along x and y.
    """
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

    def place(point):
        x, y = point[0] * mirror + shear * point[1], point[1]
        x, y = cosine * x - sine * y, sine * x + cosine * y
        depth = 1 + lean[0] * x + lean[1] * y
        return center[0] + scale * x / depth, center[1] + scale * y / depth

    return place


class Canvas:
    """A transparent image on which a drawer paints in the coordinates of its frame.

    `size` is (width, height) in pixels, `place` a placement and `scale` its pixels per unit.
    """

    def __init__(self, size, place, scale):
        self.sheet = Image.new('RGBA', size)
        self.pen = ImageDraw.Draw(self.sheet)
        self.place, self.scale = place, scale

    def inset(self, x, y, size, degrees=0.0):
        """A canvas on the same image with a translated, scaled and rotated frame."""
        inset = copy(self)
        inset.place = lambda point: self.place(moved([point], x, y, size, degrees)[0])
        inset.scale = self.scale * size
        return inset

    def fill(self, outline, color, opacity=1.0):
        """Fill an outline; an opacity below 1 is blended with what is below."""
        points = [self.place(point) for point in outline]
        if opacity == 1:
            self.pen.polygon(points, fill=color)
        else:
            self._glaze(self._mask(points, opacity), color)

    def line(self, points, color, width):
        """Draw a line with round ends and joints; `width` in units of the frame."""
        points = [self.place(point) for point in points]
        width = max(1, round(width * self.scale))
        self.pen.line(points, fill=color, width=width, joint='curve')
        if width > 2:
            for x, y in (points[0], points[-1]):
                half = width / 2 - 0.5
                self.pen.ellipse((x - half, y - half, x + half, y + half), fill=color)

    def shade(self, outline, color, opacity, softness=0.1):
        """A soft light or shadow, only on parts that are already painted."""
        mask = self._mask([self.place(point) for point in outline], opacity)
        mask = mask.filter(ImageFilter.GaussianBlur(softness * self.scale))
        self._glaze(ImageChops.multiply(mask, self.sheet.getchannel('A')), color)

    def glow(self, outline, color, opacity, softness=0.1):
        """A soft light, also on transparent parts."""
        mask = self._mask([self.place(point) for point in outline], opacity)
        self._glaze(mask.filter(ImageFilter.GaussianBlur(softness * self.scale)), color)

    def write(self, text, x, y, height, color, width):
        """Write `text` in strokes, centred on (x, y)."""
        unit = height / 4
        left = x - unit * (3 * len(text) - 1) / 2
        for index, letter in enumerate(text):
            for stroke in GLYPHS[letter]:
                self.line([(left + unit * (3 * index + int(a)), y + unit * (int(b) - 2))
                           for a, b in stroke.split()], color, width)

    def _mask(self, points, opacity):
        mask = Image.new('L', self.sheet.size)
        ImageDraw.Draw(mask).polygon(points, fill=round(255 * opacity))
        return mask

    def _glaze(self, mask, color):
        layer = Image.new('RGBA', self.sheet.size, color)
        layer.putalpha(mask)
        self.sheet.alpha_composite(layer)
