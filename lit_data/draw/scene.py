"""Draw `lit_data/`, a small data set in ImageNet's layout, on which every command can be tried.

    python lit_data/draw/scene.py
    python lit_data/draw/scene.py --out more_data --train 500 --val 50

    lit_data/train/n07579787/n07579787_0001.JPEG    170 pictures of each of 16 classes
    lit_data/val/n07579787/lit_val_00000097.JPEG    8 others of each class
    lit_data/train.txt, lit_data/val.txt            lines `n07579787/n07579787_0001.JPEG 923`
    lit_data/drawn.json                             options and classes, for replacing the files

Classes have ImageNet's class ids and WordNet ids. The pictures are drawings: accuracy on them says
nothing about accuracy on ImageNet.

A picture depends only on the seed, its split, class and number, not on which other pictures are
drawn. With other versions of Pillow and libjpeg, bytes differ and pixels may differ slightly.

A picture consists of a background, distractors, the object with its shadow, and camera effects
(blur, tint, noise). All but the object have the same distribution for all classes, so that only the
object tells the class.
"""

import argparse
import io
import json
import math
import re
import sys
from pathlib import Path
from random import Random

import numpy
from canvas import (
    OVERSAMPLE,
    Canvas,
    blob,
    box,
    curve,
    ellipse,
    hsv,
    paint,
    placement,
    tint,
)
from PIL import Image, ImageDraw, ImageFilter
from things import CLASSES, NOT_MIRRORED, TILT
from tqdm import tqdm

RECORD = 'drawn.json'


# Background, distractors and camera: the same distribution for all classes.

def _ground_color(random):
    return hsv(random.random(), random.uniform(0.03, 0.4), random.uniform(0.25, 0.9))


def _ramp(random, size):
    """A linear gradient from 0 to 1 in a random direction, array `[height, width]`."""
    turn = random.uniform(0, math.tau)
    x, y = numpy.meshgrid(numpy.linspace(-1, 1, size[0]), numpy.linspace(-1, 1, size[1]))
    slope = x * math.cos(turn) + y * math.sin(turn)
    return (slope - slope.min()) / (slope.max() - slope.min())


def background(random, noise, size):
    """A random background as an RGB image.

    `size` is (width, height) in pixels; `noise` a numpy RandomState.
    """
    first, second = _ground_color(random), _ground_color(random)
    paint_ground = random.choice([_planks, _cloth, _strokes, _lights, _tiles, _horizon, None, None])
    if paint_ground is None:
        if random.random() < 0.5:
            part = Image.fromarray((255 * _ramp(random, size)).astype('uint8'))
        else:
            cells = random.randint(4, 14)
            part = Image.fromarray(noise.randint(0, 256, (cells, cells)).astype('uint8'))
            part = part.resize(size, Image.BICUBIC)
        return Image.composite(Image.new('RGB', size, first), Image.new('RGB', size, second), part)

    # Patterns are painted on a larger image, rotated, and cropped.
    side = round(1.5 * max(size))
    sheet = Image.new('RGB', (side, side), first)
    paint_ground(ImageDraw.Draw(sheet), random, side, first, second)
    if paint_ground in (_lights, _horizon):
        sheet = sheet.filter(ImageFilter.GaussianBlur(side * random.uniform(0.01, 0.04)))
    turn = 12 if paint_ground in (_horizon, _strokes) else 90
    sheet = sheet.rotate(random.uniform(-turn, turn), Image.BICUBIC)
    # Less contrast than the object.
    plain = Image.new('RGB', sheet.size, sheet.resize((1, 1), Image.BOX).getpixel((0, 0)))
    sheet = Image.blend(sheet, plain, random.uniform(0.4, 0.7))
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    return sheet.crop((left, top, left + size[0], top + size[1]))


def _planks(pen, random, side, first, second):
    step = random.uniform(0.1, 0.25) * side
    for plank in range(int(side / step) + 1):
        color = tint(first, random.uniform(-0.18, 0.18))
        pen.rectangle((0, plank * step, side, plank * step + step), fill=color)
        for _ in range(7):
            y = (plank + random.random()) * step
            pen.line((0, y, side, y + random.uniform(-0.03, 0.03) * side),
                     fill=tint(color, random.uniform(-0.25, 0.05)), width=random.randint(1, 4))
        pen.line((0, plank * step, side, plank * step), fill=tint(color, -0.5), width=3)


def _cloth(pen, random, side, first, second):
    step = random.uniform(0.06, 0.16) * side
    middle = tuple((a + b) // 2 for a, b in zip(first, second))
    for row in range(int(side / step) + 1):
        for column in range(int(side / step) + 1):
            x, y = column * step, row * step
            pen.rectangle((x, y, x + step, y + step),
                          fill=(first, middle, second)[row % 2 + column % 2])


def _strokes(pen, random, side, first, second):
    for _ in range(500):
        x, y = random.uniform(0, side), random.uniform(0, side)
        length, lean = random.uniform(0.04, 0.14) * side, random.uniform(-0.4, 0.4)
        pen.line((x, y, x + lean * length, y - length),
                 fill=tint(first, random.uniform(-0.5, 0.35)), width=random.randint(2, 6))


def _lights(pen, random, side, first, second):
    for _ in range(25):
        x, y = random.uniform(0, side), random.uniform(0, side)
        radius = random.uniform(0.03, 0.13) * side
        pen.ellipse((x - radius, y - radius, x + radius, y + radius),
                    fill=tint(random.choice([first, second]), random.uniform(-0.3, 0.4)))


def _tiles(pen, random, side, first, second):
    wide, high = random.uniform(0.12, 0.3) * side, random.uniform(0.08, 0.2) * side
    for row in range(int(side / high) + 1):
        for column in range(-1, int(side / wide) + 1):
            x, y = (column + row % 2 / 2) * wide, row * high
            pen.rectangle((x + 4, y + 4, x + wide, y + high),
                          fill=tint(second, random.uniform(-0.2, 0.2)))


def _horizon(pen, random, side, first, second):
    edge = side * random.uniform(0.4, 0.65)
    pen.rectangle((0, edge, side, side), fill=second)
    for _ in range(14):
        x, y = random.uniform(0, side), random.uniform(0, side)
        color = tint(first if y < edge else second, random.uniform(-0.15, 0.15))
        pen.ellipse((x, y, x + side * random.uniform(0.1, 0.4), y + side * 0.04), fill=color)


def distractor(canvas, random):
    """Draw a small plain shape that belongs to no class."""
    color = _ground_color(random) if random.random() < 0.6 else paint(random)
    kind = random.choice(['bar', 'blob', 'corner', 'ring', 'leaf', 'zigzag', 'cross'])
    if kind == 'bar':
        canvas.fill(box(-1, -0.22, 1, 0.22), color)
    elif kind == 'blob':
        canvas.fill(blob(random, 0, 0, 0.8), color)
    elif kind == 'corner':
        canvas.fill([(-0.9, 0.7), (0.9, 0.8), (random.uniform(-0.5, 0.5), -0.8)], color)
    elif kind == 'ring':
        canvas.line(ellipse(0, 0, 0.75, 0.6), color, 0.2)
    elif kind == 'leaf':
        canvas.fill(curve([(-1, 0), (0, -0.4), (1, 0), (0, 0.4)]), color)
        canvas.line([(-0.9, 0), (0.9, 0)], tint(color, -0.35), 0.06)
    elif kind == 'zigzag':
        canvas.line([(-0.9, 0.3), (-0.45, -0.3), (0, 0.3), (0.45, -0.3), (0.9, 0.3)], color, 0.18)
    else:
        canvas.line([(-0.7, 0), (0.7, 0)], color, 0.25)
        canvas.line([(0, -0.7), (0, 0.7)], color, 0.25)


def _paste(scene, canvas, random):
    """Paste a canvas onto the scene, with a shadow."""
    alpha = canvas.sheet.getchannel('A')
    reach = max(1.0, canvas.scale * random.uniform(0.03, 0.12))
    turn, strength = random.uniform(0, math.tau), random.uniform(0.35, 0.75)
    shadow = Image.new('L', scene.size)
    shadow.paste(alpha, (round(reach * math.cos(turn)), round(reach * math.sin(turn))))
    shadow = shadow.filter(ImageFilter.GaussianBlur(reach))
    shadow = shadow.point(lambda value: round(value * strength))
    scene.paste((10, 10, 15), (0, 0), shadow)
    scene.paste(canvas.sheet, (0, 0), canvas.sheet)


def _scatter(scene, random, count, center=None):
    """Paste distractors onto the scene, at random places or at `center`, in pixels."""
    short = min(scene.size)
    for _ in range(count):
        scale = short * random.uniform(0.05, 0.13)
        x, y = center or (random.uniform(0, scene.size[0]), random.uniform(0, scene.size[1]))
        canvas = Canvas(scene.size, placement((x, y), scale, random.uniform(0, 360)), scale)
        distractor(canvas, random)
        _paste(scene, canvas, random)


def _out_of_focus(scene, random):
    """Blur the background and reduce its contrast."""
    soft = scene.filter(ImageFilter.GaussianBlur(min(scene.size) * random.uniform(0.005, 0.03)))
    mean = tuple(numpy.asarray(soft).reshape(-1, 3).mean(axis=0).round().astype(int).tolist())
    return Image.blend(soft, Image.new('RGB', soft.size, mean), random.uniform(0.3, 0.65))


def _camera(image, random, noise):
    """Camera effects: uneven light, tint, blur, noise; one picture in twenty is grey."""
    light = 1 + random.uniform(0, 0.3) * (2 * _ramp(random, image.size) - 1)
    cast = [random.uniform(0.93, 1.07) for _ in range(3)]
    if random.random() < 0.6:
        image = image.filter(ImageFilter.GaussianBlur(min(image.size) * random.uniform(0, 0.007)))
    pixels = numpy.asarray(image).astype('float64')
    pixels = (pixels - 128) * random.uniform(0.8, 1.1) + 128 + random.uniform(-18, 18)
    pixels = pixels * light[:, :, None] * numpy.array(cast)
    pixels += random.uniform(0, 6) * noise.standard_normal(pixels.shape)
    image = Image.fromarray(pixels.clip(0, 255).astype('uint8'))
    return image.convert('L') if random.random() < 0.05 else image


def picture(draw, seed):
    """Draw one picture.

    Args:
        draw: the drawer of the object, one of things.CLASSES.
        seed: any string; the same string gives the same picture.

    Returns:
        (image, quality): a Pillow image in RGB or L with sides of 64 to 120 pixels, and its JPEG
        quality, 38 to 80.
    """
    random = Random(seed)
    noise = numpy.random.RandomState(random.getrandbits(32))
    short = random.randint(64, 100)
    long = round(short * random.uniform(1, 1.2))
    size = (long, short) if random.random() < 0.6 else (short, long)
    large = tuple(OVERSAMPLE * side for side in size)
    scene = background(random, noise, large)
    _scatter(scene, random, random.randint(0, 2))
    scene = _out_of_focus(scene, random)

    extent = min(large) * random.uniform(0.86, 1)
    center = [side / 2 + min(large) * random.uniform(-0.05, 0.05) for side in large]
    tilt, mirror = TILT.get(draw, 8), random.choice([-1, 1])
    place = placement(center, extent / 2, random.uniform(-tilt, tilt), random.uniform(-0.08, 0.08),
                      (random.uniform(-0.12, 0.12), random.uniform(-0.12, 0.12)),
                      1 if draw in NOT_MIRRORED else mirror)
    canvas = Canvas(large, place, extent / 2)
    draw(canvas, random)
    _paste(scene, canvas, random)
    if random.random() < 0.12:
        turn = random.uniform(0, math.tau)
        _scatter(scene, random, 1, place((0.85 * math.cos(turn), 0.85 * math.sin(turn))))
    image = _camera(scene.reduce(OVERSAMPLE), random, noise)
    return image, random.randint(38, 80)


# The data set.

def draw_jpeg(split, class_id, number, seed=0):
    """The bytes of one JPEG file: picture `number` (from 1) of a class in "train" or "val"."""
    wordnet_id, draw = CLASSES[class_id]
    image, quality = picture(draw, f'lit_data/{seed}/{split}/{wordnet_id}/{number}')
    stream = io.BytesIO()
    image.save(stream, 'JPEG', quality=quality, optimize=True)
    return stream.getvalue()


def plan(train, val, wordnet_ids):
    """Name the files of a data set.

    Args:
        train, val: pictures in each class.
        wordnet_ids: the classes' WordNet ids, in the order of their class ids.

    Returns:
        A list of (split, path in the split's folder, index of the class, number from 1).
    """
    files = []
    for place, wordnet_id in enumerate(wordnet_ids):
        for number in range(1, train + 1):
            files.append(('train', f'{wordnet_id}/{wordnet_id}_{number:04d}.JPEG', place, number))
        for number in range(1, val + 1):
            path = f'{wordnet_id}/lit_val_{place * val + number:08d}.JPEG'
            files.append(('val', path, place, number))
    return files


def clear(out):
    """Remove the files of an earlier run, and no others, from the folder `out`.

    Raises:
        FileExistsError: if the folder has files but no valid record of an earlier run.
    """
    record = out / RECORD
    if not record.is_file():
        if out.exists() and any(out.iterdir()):
            raise FileExistsError(f'{out} holds files that this command did not draw: '
                                  'choose an empty or new folder with --out')
        return
    try:
        drawn = json.loads(record.read_text(encoding='utf-8'))
        wordnet_ids = list(drawn['classes'].values())
        if not all(re.fullmatch(r'n\d{8}', wordnet_id) for wordnet_id in wordnet_ids):
            raise ValueError('not a WordNet id')
        files = plan(drawn['train'], drawn['val'], wordnet_ids)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise FileExistsError(f'{record} cannot be read as the record of an earlier run: '
                              'choose an empty or new folder with --out') from None
    folders = set()
    for split, path, _, _ in files:
        (out / split / path).unlink(missing_ok=True)
        folders.add((out / split / path).parent)
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def prepare(out, train, val, seed=0):
    """Draw the data set into the folder `out`, replacing an earlier one.

    Args:
        train, val: pictures in each class.

    Raises:
        FileExistsError: see `clear`.
        OSError: if the folder cannot be written.
    """
    clear(out)
    out.mkdir(parents=True, exist_ok=True)
    classes = {str(class_id): wordnet_id for class_id, (wordnet_id, _) in CLASSES.items()}
    # The record is written first, so that an incomplete run can be replaced.
    record = {'train': train, 'val': val, 'seed': seed, 'classes': classes}
    (out / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding='utf-8')

    class_ids, lines = list(CLASSES), {'train': [], 'val': []}
    files = plan(train, val, classes.values())
    for split, path, place, number in tqdm(files, 'drawing', disable=not sys.stderr.isatty()):
        target = out / split / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(draw_jpeg(split, class_ids[place], number, seed))
        lines[split].append(f"{path} {class_ids[place]}\n")
    for split, entries in lines.items():
        (out / f'{split}.txt').write_text(''.join(entries), encoding='utf-8')
    total = sum((out / split / path).stat().st_size for split, path, _, _ in files)
    print(f"{out}: {len(lines['train'])} training and {len(lines['val'])} validation pictures "
          f'of {len(CLASSES)} classes, {total / 1e6:.1f} MB')


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, metavar='DIR',
                        default=Path(__file__).resolve().parent.parent,
                        help='folder to draw into (default: lit_data)')
    parser.add_argument('--train', type=int, default=170, metavar='N',
                        help='training pictures in each class (default: 170)')
    parser.add_argument('--val', type=int, default=8, metavar='N',
                        help='validation pictures in each class (default: 8)')
    parser.add_argument('--seed', type=int, default=0,
                        help='seed of all pictures (default: 0)')
    parser.error = lambda message: parser.exit(2, f'error: {message}\n')    # without the usage
    options = parser.parse_args()
    if options.train < 1 or options.val < 1:
        parser.error('--train and --val must be 1 or more')
    try:
        prepare(options.out, options.train, options.val, options.seed)
    except (FileExistsError, NotADirectoryError) as error:
        parser.error(str(error))


if __name__ == '__main__':
    main()
