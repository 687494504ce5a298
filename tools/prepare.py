"""Draw `lit_data/`: a small data set in ImageNet's layout, so that every command runs at once.

    python tools/prepare.py
    python tools/prepare.py --out more_data --train 500 --val 50

    lit_data/train/n07579787/n07579787_0001.JPEG    170 pictures of each of 16 classes
    lit_data/val/n07579787/lit_val_00000097.JPEG    8 others of each class
    lit_data/train.txt, lit_data/val.txt            lines `n07579787/n07579787_0001.JPEG 923`
    lit_data/drawn.json                             what was drawn, by which a later run knows it

Classes keep ImageNet's ids and WordNet ids. The pictures are drawn, not photographed: a network
that names them all has learnt to tell shapes, and nothing about ImageNet.

Every picture follows from the seed, its split, class and number alone, so one picture or all of
them, in any order, come out the same. The stored bytes also depend on the Pillow and libjpeg at
hand; with others, pixels may differ by a little.
"""

import io
import json
import re
import sys
from pathlib import Path

from tqdm import tqdm

import drawing
from runtime import command

CLASSES = {
    1: ('n01443537', drawing.goldfish),
    409: ('n02708093', drawing.analog_clock),
    417: ('n02782093', drawing.balloon),
    437: ('n02814860', drawing.beacon),
    470: ('n02948072', drawing.candle),
    604: ('n03544143', drawing.hourglass),
    805: ('n04254680', drawing.soccer_ball),
    815: ('n04275548', drawing.spider_web),
    879: ('n04507155', drawing.umbrella),
    914: ('n04612504', drawing.yawl),
    918: ('n06785654', drawing.crossword_puzzle),
    920: ('n06874185', drawing.traffic_light),
    923: ('n07579787', drawing.plate),
    947: ('n07734744', drawing.mushroom),
    949: ('n07745940', drawing.strawberry),
    985: ('n11939491', drawing.daisy),
}
RECORD = 'drawn.json'


def draw_jpeg(split, class_id, number, seed=0):
    """The bytes of one JPEG file: picture `number` (from 1) of a class in "train" or "val"."""
    wordnet_id, draw = CLASSES[class_id]
    image, quality = drawing.picture(draw, f'lit_data/{seed}/{split}/{wordnet_id}/{number}')
    stream = io.BytesIO()
    image.save(stream, 'JPEG', quality=quality, optimize=True)
    return stream.getvalue()


def plan(train, val, wordnet_ids):
    """Name the files of a data set.

    Args:
        train, val: pictures a class.
        wordnet_ids: the classes' WordNet ids, in the order of their class ids.

    Returns:
        A list of (split, path under the split's folder, place of the class, number from 1).
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
    """Remove from the folder `out` what an earlier run drew there, and nothing else.

    Raises:
        FileExistsError: the folder holds files but no record of an earlier run.
    """
    record = out / RECORD
    if not record.is_file():
        if out.exists() and any(out.iterdir()):
            raise FileExistsError(f'{out} holds files which this command did not draw: '
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
    """Draw the data set into the folder `out`, in place of an earlier one.

    `train` and `val` are pictures a class. Raises FileExistsError as `clear` does, and OSError
    where the folder cannot be written.
    """
    clear(out)
    out.mkdir(parents=True, exist_ok=True)
    classes = {str(class_id): wordnet_id for class_id, (wordnet_id, _) in CLASSES.items()}
    # The record goes first: a run that is stopped half-way can then be drawn over.
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


def main(arguments):
    parser = command.parser(__doc__)
    parser.add_argument('--out', type=Path, metavar='DIR',
                        default=Path(__file__).resolve().parent.parent / 'lit_data',
                        help='folder to draw into (default: lit_data)')
    parser.add_argument('--train', type=int, default=170, metavar='N',
                        help='training pictures a class (default: 170)')
    parser.add_argument('--val', type=int, default=8, metavar='N',
                        help='validation pictures a class (default: 8)')
    parser.add_argument('--seed', type=int, default=0, help='another seed, other pictures')
    options = parser.parse_args(arguments)
    if options.train < 1 or options.val < 1:
        raise command.UsageError('--train and --val must be 1 or more')
    try:
        prepare(options.out, options.train, options.val, options.seed)
    except (FileExistsError, NotADirectoryError) as error:
        raise command.UsageError(str(error)) from error


if __name__ == '__main__':
    command.run(main)
