"""Typed settings from YAML: dataclasses of options, with checks and one-line error messages.

    @dataclass
    class Train:
        SEED: int = option(0, 'seed of weights and order', low=0, used='build.train_loader')

    @dataclass
    class Config(Settings):
        TRAIN: Train = field(default_factory=Train)

    config = load(Config, 'a.yaml', ['TRAIN.SEED=1'])

A file's size and its values' number, length and depth are limited before they cost time or
memory; YAML aliases are rejected.
"""

import dataclasses
import difflib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
LARGEST_FILE = 1 << 16    # bytes
LONGEST_TEXT = 4096       # characters of one value
DEEPEST = 8               # nested sections and lists
MOST_VALUES = 4096        # keys and values of one file


class ConfigError(ValueError):
    """An invalid configuration; the message names the file, the key and the remedy in one line."""

    exit_code = 2


def option(default, help, used, free=False, choices=None, former=None, low=None, high=None,
           above=None, below=None, of='numbers'):
    """Declare a key; return a dataclasses.field.

    Args:
        default: value if no file sets one.
        help: description.
        used: where it is used: a module of tools/, or a function in one.
        free: whether a resumed run may have another value, because the result stays the same.
        choices: allowed values.
        former: {former value: present value with the same meaning}.
        low, high, above, below: limits of numbers; `low` and `high` are inclusive.
        of: items of a tuple: 'numbers', as many as in the default; 'names', any number of
            strings; 'triples', any number of rows of three integers; 'pairs', any number of rows
            of two numbers.
    """
    about = dict(help=help, used=used, free=free, choices=choices, former=former or {}, of=of,
                 limits=dict(low=low, high=high, above=above, below=below))
    if isinstance(default, tuple):
        return field(default_factory=lambda: default, metadata=about)
    return field(default=default, metadata=about)


@dataclass
class Settings:
    """Base class of the dataclass that holds all sections."""

    def __post_init__(self):
        self.file = ''      # name of the file, for messages
        self.places = {}    # where keys were set: {'TRAIN.SEED': 'file:line'}

    def refusal(self, name, reason):
        """Return a ConfigError with the message 'file:line: name reason'."""
        place = self.places.get(name, self.file)
        return ConfigError(f'{place}: {name} {reason}' if place else f'{name} {reason}')


def keys_of(kind):
    """Return all keys of a Settings class by full name: {'TRAIN.SEED': dataclasses.Field}."""
    keys = {}
    for section in dataclasses.fields(kind):
        if dataclasses.is_dataclass(section.type):
            keys.update({f'{section.name}.{key.name}': key
                         for key in dataclasses.fields(section.type)})
        else:
            keys[section.name] = section
    return keys


def default_of(key):
    """Return the default value of a dataclasses.Field."""
    return key.default if key.default_factory is dataclasses.MISSING else key.default_factory()


def load(kind, path, overrides=(), removed=None):
    """Read a YAML file and its BASE files into an object of a Settings class.

    Args:
        kind: the Settings class.
        path: an existing file.
        overrides: strings `SECTION.KEY=VALUE`; the value is parsed as YAML.
        removed: {name: value} of keys that no longer exist; a file may still set this value.

    Raises:
        ConfigError: for an unreadable file, an unknown key, a wrong type, or a value out of
            range.
    """
    keys, removed = keys_of(kind), removed or {}
    entries = _read_files(path, keys, removed)    # name -> (value, place)
    entries.update(_read_overrides(overrides, keys, removed))
    settings = kind()
    settings.file = shown(path)
    for name, (value, place) in entries.items():
        if name in removed:
            if value != removed[name]:
                raise ConfigError(f'{place}: {name} was removed, and what is left of it is '
                                  f'{json.dumps(removed[name])}: leave it out')
            continue
        section, _, key = name.rpartition('.')
        setattr(getattr(settings, section) if section else settings, key,
                _coerce(name, keys[name], value, place))
        settings.places[name] = place
    return settings


def save(settings, path):
    """Write all keys as a YAML file that `load` can read."""
    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    text = yaml.safe_dump(plain(dataclasses.asdict(settings)), sort_keys=False,
                          allow_unicode=True)
    Path(path).write_text(text, encoding='utf-8')


def table(kind):
    """Return a Markdown table of all keys."""
    lines = ['| key | default | values | on resuming | used in | meaning |',
             '| --- | --- | --- | --- | --- | --- |']
    for name, key in keys_of(kind).items():
        about, default = key.metadata, default_of(key)
        shown = (', '.join(f'{item:.4g}' for item in default) if isinstance(default, tuple)
                 else json.dumps(default))
        values = ([choice or '""' for choice in about['choices']] if about['choices'] else
                  [f'{word} {about["limits"][limit]}' for limit, (_, word) in LIMITS.items()
                   if about['limits'][limit] is not None])
        lines.append(f'| `{name}` | {shown} | {", ".join(values)} | '
                     f'{"free" if about["free"] else "fixed"} | {about["used"]} | '
                     f'{about["help"]} |')
    return '\n'.join(lines)


def find(path):
    """Return the path of a configuration file; relative paths may start at the project's folder.

    Raises:
        ConfigError: if there is no such file.
    """
    for candidate in (os.path.expanduser(path), ROOT / path):
        if os.path.isfile(candidate):    # Path.is_file raises for names that are too long
            return Path(candidate).resolve()
    names = sorted(file.name for file in (ROOT / 'config').glob('*.yaml'))
    nearest = difflib.get_close_matches(Path(path).name, names, n=1)
    hint = f', did you mean config/{nearest[0]}?' if nearest else ''
    raise ConfigError(f'{_short(str(path))}: no such configuration file{hint}')


def project_path(path):
    """Return an absolute path; relative paths start at the project's folder."""
    return str(ROOT / os.path.expanduser(path))


def shown(path):
    """Return a file name for messages, relative to the project's folder where it is inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


# Reading YAML

class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits, for untrusted files."""

    depth = count = 0
    most_values = MOST_VALUES

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            # A few lines of aliases can expand to any number of values.
            self.refuse(event, 'aliases (*name) are not supported, write the value again')
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST_TEXT:
            self.refuse(event, f'a text of more than {LONGEST_TEXT} characters')
        if self.depth == DEEPEST:
            self.refuse(event, f'nested more than {DEEPEST} deep')
        if self.count == self.most_values:
            self.refuse(event, f'more than {self.most_values} values')
        self.count += 1
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def refuse(self, event, problem):
        raise yaml.composer.ComposerError(None, None, problem, event.start_mark)


def parse_yaml(text, most_values=MOST_VALUES):
    """Parse untrusted YAML text within the limits of this module; return Python objects.

    Raises:
        Exception: for invalid YAML or an exceeded limit. PyYAML raises more than YAMLError, and
            its constructors raise what Python's do.
    """
    loader = _Loader(text)
    loader.most_values = most_values
    return loader.get_single_data()


def _read_files(path, keys, removed):
    """Return the entries of a YAML file and its BASE files: {full name: (value, 'file:line')}."""
    entries, read = {}, []
    while path:
        if path in read:
            raise ConfigError(f'{shown(path)}: BASE leads back to this file')
        read.append(path)
        base = None
        for name, value, line in _yaml_entries(path, keys):
            place = f'{shown(path)}:{line}'
            if name == 'BASE':
                base = path.parent / str(value)
                if not os.path.isfile(base):
                    raise ConfigError(f'{place}: BASE names {_short(str(value))}, which is no file')
                base = base.resolve()
            else:
                _check_known(name, keys, removed, place)
                entries.setdefault(name, (value, place))    # a file overrides its base
        path = base
    return entries


def _yaml_entries(path, keys):
    """Return the entries of a YAML file as (full name, value, line); reject duplicate keys."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ConfigError(f'{shown(path)}: larger than {LARGEST_FILE} bytes, '
                              'this is no configuration')
        text = path.read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f'{shown(path)}: cannot be read: {error}') from error
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except Exception as error:    # PyYAML's parser raises more than its own YAMLError
        mark = getattr(error, 'problem_mark', None)
        line = f':{mark.line + 1}' if mark else ''
        raise ConfigError(f'{shown(path)}{line}: is no valid YAML: {_problem(error)}') from error
    return _entries_of(loader, root, path, '', sections_of(keys)) if root else []


def _problem(error):
    """Return the problem of a PyYAML exception, shortened."""
    return _short(str(getattr(error, 'problem', None) or error or type(error).__name__))


def _entries_of(loader, node, path, section, sections):
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f'{shown(path)}:{node.start_mark.line + 1}: {section or "the file"} '
                          'must hold `KEY: value` lines')
    entries, lines = [], {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        place = f'{shown(path)}:{line}'
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f'{place}: a key must be a name')
        name = f'{section}.{key_node.value}' if section else key_node.value
        if name in lines:
            raise ConfigError(f'{place}: {_short(name)} was set in line {lines[name]} already: '
                              'keep one of the two')
        lines[name] = line
        if name in sections:
            if value_node.tag != 'tag:yaml.org,2002:null':
                entries += _entries_of(loader, value_node, path, name, sections)
            continue
        try:
            value = loader.construct_object(value_node, deep=True)
        except Exception as error:    # constructors raise what Python's do
            raise ConfigError(f'{place}: {_short(name)}: the value cannot be read: '
                              f'{_problem(error)}') from error
        entries.append((name, value, line))
    return entries


def _read_overrides(overrides, keys, removed):
    entries = {}
    for text in overrides:
        name, equals, value = text.partition('=')
        place = f'-o {_short(text)}'
        if len(text) > LONGEST_TEXT:
            raise ConfigError(f'{place}: is longer than {LONGEST_TEXT} characters')
        if not equals:
            raise ConfigError(f'{place}: write it as SECTION.KEY=VALUE')
        _check_known(name, keys, removed, place)
        if name in removed or keys[name].type is not str:
            try:
                value = parse_yaml(value)
            except Exception as error:    # as in a file
                raise ConfigError(f'{place}: the value is no valid YAML') from error
        entries[name] = (value, place)
    return entries


def sections_of(keys):
    """Return the sorted names of the sections of {full name: field}."""
    return sorted({name.split('.')[0] for name in keys if '.' in name})


def _check_known(name, keys, removed, place):
    if name in keys or name in removed:
        return
    sections = sections_of(keys)
    if name in sections:
        raise ConfigError(f'{place}: {name} is a section: set one of its keys')
    # For a key in the wrong section suggest the key of the same name.
    last = {known.split('.')[-1]: known for known in keys}
    nearest = (difflib.get_close_matches(name, list(keys) + sections, n=1)
               or difflib.get_close_matches(name.split('.')[-1], last, n=1))
    same_key = last.get(name.split('.')[-1])
    known = same_key or (last.get(nearest[0], nearest[0]) if nearest else None)
    hint = f', did you mean {known}?' if known else f'; sections are {", ".join(sections)}'
    raise ConfigError(f'{place}: {_short(name)} is an unknown key{hint}')


def _short(text, most=80):
    """Return user input for a message: printable and at most `most` characters."""
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= most else f'{text[:most]}...'


# Types and limits

LIMITS = {    # name: (whether a value violates it, words)
    'low': (lambda value, limit: value < limit, 'at least'),
    'high': (lambda value, limit: value > limit, 'at most'),
    'above': (lambda value, limit: value <= limit, 'more than'),
    'below': (lambda value, limit: value >= limit, 'less than'),
}


def _coerce(name, key, value, place):
    """Convert a value to the type of its key and check its limits."""
    if key.type is tuple:
        wanted, read = _list_reader(key)
    else:
        wanted, read = READERS[key.type]
    try:
        result = read(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f'{place}: {name} must be {wanted}, '
                          f'not {_short(repr(value))}') from None
    if key.metadata['former']:
        result = key.metadata['former'].get(result, result)
    choices = key.metadata['choices']
    if choices and result not in choices:
        nearest = difflib.get_close_matches(str(result), choices, n=1)
        hint = f', did you mean {nearest[0]}?' if nearest else ''
        raise ConfigError(f'{place}: {name} must be one of '
                          f'{", ".join(choice or repr(choice) for choice in choices)}, '
                          f'not {_short(repr(result))}{hint}')
    for item in result if isinstance(result, tuple) else (result,):
        for limit, (is_broken, words) in LIMITS.items():
            bound = key.metadata['limits'][limit]
            if bound is not None and is_broken(item, bound):
                raise ConfigError(f'{place}: {name} must be {words} {bound}, '
                                  f'not {_short(repr(result))}')
    return result


def _text(value):
    if value is None or value is False:    # YAML's null, and RESUME: false
        return '' if value is None else 'false'
    return _instance(str, value)


def _truth(value):
    return _instance(bool, value)


def _instance(kind, value):
    if not isinstance(value, kind):
        raise TypeError
    return value


def _number(value):
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError
    number = float(value)    # PyYAML reads 1e-6 as a string
    if not math.isfinite(number):
        raise ValueError
    return number


def _whole_number(value):
    number = _number(value)
    if number != int(number):
        raise TypeError
    return int(number)


READERS = {str: ('text', _text), bool: ('true or false', _truth),
           int: ('a whole number', _whole_number), float: ('a number', _number)}


def _list_reader(key):
    """Return (description for messages, reader) of a tuple key; see `of` in `option`."""
    length = len(default_of(key))

    def numbers(value):
        if len(_instance((list, tuple), value)) != length:
            raise TypeError
        return tuple(_number(item) for item in value)

    def names(value):
        if value is None or isinstance(value, str):
            value = [value] if value else []
        return tuple(_instance(str, item or None) for item in _instance((list, tuple), value))

    def rows(value, width, read):
        if any(len(_instance((list, tuple), row)) != width
               for row in _instance((list, tuple), value)):
            raise TypeError
        return tuple(tuple(read(item) for item in row) for row in value)

    return {'numbers': (f'a list of {length} numbers', numbers),
            'names': ('a list of names', names),
            'triples': ('a list of rows of 3 whole numbers',
                        lambda value: rows(value, 3, _whole_number)),
            'pairs': ('a list of rows of 2 numbers',
                      lambda value: rows(value, 2, _number))}[key.metadata['of']]
