"""A folder with weights as timm publishes them: model.safetensors, config.json and a README.

config.json has timm's keys: architecture, num_classes, label_names, and pretrained_cfg with
size, crop and normalisation of images.
"""

import json
import os
from pathlib import Path

from weights.writer import replacing

WEIGHTS = ('model.safetensors', 'pytorch_model.bin')    # in the order in which they are looked for
CONFIG = 'config.json'
LARGEST_CONFIG = 4_000_000    # bytes


def weights_in(folder):
    """Return the path of the weights file of a folder, or None if it has none."""
    files = [Path(folder) / name for name in WEIGHTS]
    return next((file for file in files if file.is_file()), None)


def read_config(folder):
    """Return what config.json says about the weights, as far as it is known.

    Returns:
        dict: `arch`, `image_size` and `class_names`, as in the metadata of read_weights.

    Raises:
        ValueError: for a file that is too large or not as timm writes it.
        OSError: if it cannot be read.
    """
    path = Path(folder) / CONFIG
    if not path.exists():
        return {}
    if path.stat().st_size > LARGEST_CONFIG:
        raise ValueError(f'larger than {LARGEST_CONFIG} bytes')
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except RecursionError as error:
        raise ValueError('nested too deeply') from error
    if not isinstance(content, dict):
        raise ValueError('holds no keys')
    data = content.get('pretrained_cfg', content)    # before timm 0.9 all in one
    size = data.get('input_size') if isinstance(data, dict) else None
    found = {'arch': content.get('architecture'),
             'image_size': size[-1] if isinstance(size, list) and size else None,
             'class_names': _class_names(content)}
    kinds = dict(arch=str, image_size=int, class_names=list)
    return {key: value for key, value in found.items() if type(value) is kinds[key]}


def _class_names(content):
    """The names of the classes: label_descriptions of label_names, else label_names."""
    names, described = content.get('label_names'), content.get('label_descriptions')
    if isinstance(names, dict):    # {'0': name, ...}
        names = [names.get(str(index)) for index in range(len(names))]
    if not isinstance(names, list) or not all(type(name) is str for name in names):
        return None
    described = described if isinstance(described, dict) else {}
    return [str(described.get(name, name)) for name in names]


def write_texts(folder, config, readme):
    """Write config.json (a dict) and README.md (a text), each atomically."""
    for name, text in ((CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + '\n'),
                       ('README.md', readme)):
        with replacing(Path(folder) / name) as temporary:
            Path(temporary).write_text(text, encoding='utf-8')


def is_weights_folder(path):
    """Whether a path is a folder with weights."""
    return os.path.isdir(path) and weights_in(path) is not None


def timm_config(model, num_classes, num_features, heads, image_size, transform, crop_ratio,
                interpolation, mean, std, class_names):
    """Return the content of config.json.

    Args:
        heads: names of the classifiers.
        transform: 'center_crop' or 'squash', with `crop_ratio` and `interpolation`.
        class_names: in class order, or an empty list.
    """
    crop = (dict(crop_pct=1.0, crop_mode='squash') if transform == 'squash' else
            dict(crop_pct=crop_ratio, crop_mode='center'))
    data = dict(
        num_classes=num_classes, input_size=[3, image_size, image_size], fixed_input_size=True,
        interpolation=interpolation, **crop, mean=list(mean), std=list(std), custom_load=False,
        classifier=heads[0] if len(heads) == 1 else list(heads))
    return dict(
        architecture=model, num_classes=num_classes, num_features=num_features,
        global_pool='token', **(dict(label_names=class_names) if class_names else {}),
        model_args=dict(img_size=image_size), pretrained_cfg=data)
