"""Reads back what a figure in SVG shows: points of curves, texts, images."""

import base64
import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
from PIL import Image

SVG, LINK = '{http://www.w3.org/2000/svg}', '{http://www.w3.org/1999/xlink}href'


def read(path):
    """The root of a well-formed SVG file."""
    return ElementTree.parse(path).getroot()


def group(root, name):
    """The group that a part of a figure with this name is drawn in."""
    (found,) = [found for found in root.iter(f'{SVG}g') if found.get('id') == name]
    return found


def points_of(root, name):
    """The points of a curve in pixels, from its path."""
    return [tuple(map(float, point)) for point in
            re.findall(r'[ML] (\S+) (\S+)', group(root, name).find(f'{SVG}path').get('d'))]


def markers_of(root, name):
    """The places of a curve's markers in pixels."""
    return [(float(use.get('x')), float(use.get('y')))
            for use in group(root, name).iter(f'{SVG}use')]


def texts(root):
    """All texts, in the order in which they are drawn."""
    return [''.join(text.itertext()).strip() for text in root.iter(f'{SVG}text')]


def images(root):
    """All images, in the order in which they are drawn: uint8 [H, W, 3] with row 0 on top."""
    found = []
    for image in root.iter(f'{SVG}image'):
        data = base64.b64decode(image.get(LINK).partition(',')[2])
        found.append(np.asarray(Image.open(io.BytesIO(data)).convert('RGB')))
    return found
