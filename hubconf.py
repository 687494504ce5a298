"""The networks of this project for paddle.hub, without installation.

    import paddle
    paddle.hub.list('path/of/this/folder', source='local')
    network = paddle.hub.load('path/of/this/folder', 't2t_vit_7', source='local', num_classes=10)

Every name of zoo.MODELS is an entry; paddle.hub.help shows what each takes.
"""

import contextlib as _contextlib
import importlib as _importlib
import sys as _sys
from pathlib import Path as _Path

dependencies = ['paddle', 'numpy']

_ROOT = _Path(__file__).resolve().parent
# What pretrained=True looks for in the project's folder before it downloads.
_FILES = ('output/{name}.pdparams', 'output/{name}.safetensors', 'output/{name}.pth',
          'output/{name}.pth.tar')

_HELP = """{title}

    Args:
        pretrained: False for newly initialised weights; the path of a weights file of any known
            origin, e.g. the official .pth.tar; 'published:NAME' for published weights, downloaded
            on first use; True for output/{name}.pdparams, .safetensors, .pth or .pth.tar in the
            project's folder, else the published weights of {name}.
        num_classes, img_size: width of the head and side of the square input in pixels; default:
            those of the weights; without weights, those of create_model.
        **options: further options of {network}, e.g. drop_path_rate=0.1.

    Returns:
        paddle.nn.Layer: images `[B, 3, img_size, img_size]` to logits `[B, num_classes]`.

    Raises:
        ValueError: for weights that are missing or don't fit, and for invalid options.
    """


@_contextlib.contextmanager
def _tools_first():
    """A context in which the modules of tools/ are imported before others of the same names.

    Afterwards sys.path and the caller's modules are restored.
    """
    folder = _ROOT / 'tools'
    own = {path.stem for path in folder.iterdir()}
    hidden = {name: module for name, module in _sys.modules.items()
              if name.split('.')[0] in own and not _lies_in(module, folder)}
    for name in hidden:
        del _sys.modules[name]
    _sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        _sys.path.remove(str(folder))
        _sys.modules.update(hidden)


def _lies_in(module, folder):
    file = getattr(module, '__file__', None)
    return bool(file) and folder in _Path(file).resolve().parents


with _tools_first():
    _zoo = _importlib.import_module('zoo')
    _names = _importlib.import_module('zoo.names')
    _published = _importlib.import_module('zoo.published')


def _known_file(name):
    """The weights of pretrained=True: a path or 'published:NAME'."""
    files = [pattern.format(name=name) for pattern in _FILES]
    for file in files:
        if (_ROOT / file).is_file():
            return _ROOT / file
    if name in _published.PUBLISHED:
        return f'published:{name}'
    raise ValueError(f'{name}: pretrained=True finds no weights in {_ROOT}, and none were '
                     f'published: put a file there as {files[0]} (or {", ".join(files[1:4])}), '
                     'or give its path')


def _entry(name):
    network, defaults = _zoo.MODELS[name]

    def create(pretrained=False, **options):
        try:
            if not pretrained:
                return _zoo.create_model(name, **options)
            given = _known_file(name) if pretrained is True else pretrained
            path = _Path(_published.local_file(given)).expanduser()
            return _names.pretrained_model(name, path, **options)
        except ValueError:
            raise
        except Exception as error:
            # A value of a wrong type: the network fails where it first uses the value.
            listed = ', '.join(f'{key}={value!r}' for key, value in options.items())
            raise ValueError(f'{name}(pretrained={pretrained!r}{", " * bool(listed)}{listed}): '
                             f'invalid options ({type(error).__name__}: {error})') from error

    arguments = ', '.join(f'{key}={value}' for key, value in defaults.items())
    create.__name__ = create.__qualname__ = name
    create.__doc__ = _HELP.format(title=f'{name}: {network.__name__}({arguments}).', name=name,
                                  network=network.__name__)
    return create


globals().update((_name, _entry(_name)) for _name in _zoo.MODELS)
