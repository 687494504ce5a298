"""Settings from YAML: dataclasses of options, filled, checked, and refused in one line.

    @dataclass
    class Train:
        SEED: int = option(0, 'seed of weights and order', low=0, used='build.train_loader')

    @dataclass
    class Config(Settings):
        TRAIN: Train = field(default_factory=Train)

    config = load(Config, 'a.yaml', ['TRAIN.SEED=1'])

What YAML allows beyond that is bounded before it costs time or memory: the size of a file, the
number of its values, their length and depth; aliases are refused.
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
LARGEST_FILE = 1 << 16    # bytes; a configuration is a page, not a book
LONGEST_TEXT = 4096       # characters of one value, as of a path
DEEPEST = 8               # sections and lists within each other
MOST_VALUES = 4096        # keys and values of one file



class ConfigError(ValueError):
    """A configuration that can't be used: one line naming file, key and what to do."""

    exit_code = 2


def option(default, help, used, free=False, choices=None, low=None, high=None, above=None,
           below=None, of='numbers'):
    """A key: all that is known of it.

    Args:
        default: its value where no file says another.
        help: what it means.
        used: where it is used: a module of tools/, or a function of one.
        free: whether a resumed run may have another value, as it does not change the result.
        choices: the values that it may have.
        low, high, above, below: limits of numbers; the first two are included.
        of: what a tuple holds: 'numbers', as many as its default has; 'names', any number of
            texts; 'triples', any number of rows of three whole numbers; 'pairs', any number of
            rows of two numbers.
    """
    about = dict(help=help, used=used, free=free, choices=choices, of=of,
                 limits=dict(low=low, high=high, above=above, below=below))
    if isinstance(default, tuple):
        return field(default_factory=lambda: default, metadata=about)
    return field(default=default, metadata=about)


@dataclass
class Settings:
    """Base of the dataclass of all sections."""

    def __post_init__(self):
        self.file = ''      # that was read, short
        self.places = {}    # of the keys that it sets: {'TRAIN.SEED': 'file:line'}

    def refusal(self, name, reason):
        """The error for a key's value: '`file:line`: `name` `reason`'."""
        place = self.places.get(name, self.file)
        return ConfigError(f'{place}: {name} {reason}' if place else f'{name} {reason}')


def keys_of(kind):
    """Every key of a Settings class by its full name: {'TRAIN.SEED': dataclasses.Field}."""
    keys = {}
    for section in dataclasses.fields(kind):
        if dataclasses.is_dataclass(section.type):
            keys.update({f'{section.name}.{key.name}': key
                         for key in dataclasses.fields(section.type)})
        else:
            keys[section.name] = section
    return keys


def default_of(key):
    return key.default if key.default_factory is dataclasses.MISSING else key.default_factory()


def load(kind, path, overrides=(), removed=None):
    """Read a YAML file, and the files that it names as BASE, into an object of a Settings class.

    Args:
        path: an existing file.
        overrides: texts `SECTION.KEY=VALUE`; the value is read as YAML.
        removed: {name: value} of keys that are no more; a file may still give them this value.

    Raises:
        ConfigError: for an unreadable file, an unknown key, a wrong type, or a value out of its
            range.
    """
    keys, removed = keys_of(kind), removed or {}
    said = _read_files(path, keys, removed)    # name -> (value, place)
    said.update(_read_overrides(overrides, keys, removed))
    settings = kind()
    settings.file = shown(path)
    for name, (value, place) in said.items():
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
    """Write every key as YAML that `load` reads again."""
    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    text = yaml.safe_dump(plain(dataclasses.asdict(settings)), sort_keys=False,
                          allow_unicode=True)
    Path(path).write_text(text, encoding='utf-8')


def table(kind):
    """All keys as a Markdown table."""
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
    """A configuration file named on the command line, as an existing path."""
    for candidate in (os.path.expanduser(path), ROOT / path):
        if os.path.isfile(candidate):    # unlike Path.is_file, also for names that are too long
            return Path(candidate).resolve()
    names = sorted(file.name for file in (ROOT / 'config').glob('*.yaml'))
    nearest = difflib.get_close_matches(Path(path).name, names, n=1)
    hint = f', did you mean config/{nearest[0]}?' if nearest else ''
    raise ConfigError(f'{_short(str(path))}: no such configuration file{hint}')


def project_path(path):
    """A path of the configuration as an absolute one; relative ones start at the project."""
    return str(ROOT / os.path.expanduser(path))


def shown(path):
    """A file's name for messages: short inside the project."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


# Reading YAML

class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader for files of anybody: it builds nothing deep, long or repeated."""

    depth = count = 0
    most_values = MOST_VALUES

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            # A few lines of them can stand for any number of values.
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
    """What a YAML text of anybody says, within the bounds of a configuration.

    Raises:
        Exception: for a text that is no YAML or goes beyond them; PyYAML's parser raises more
            than its own YAMLError, and its constructors whatever Python's own do.
    """
    loader = _Loader(text)
    loader.most_values = most_values
    return loader.get_single_data()


def _read_files(path, keys, removed):
    """All that a YAML file and its BASE files say: {full name: (value, 'file:line')}."""
    said, read = {}, []
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
                said.setdefault(name, (value, place))    # a file wins over its base
        path = base
    return said


def _yaml_entries(path, keys):
    """The entries of a YAML file as (full name, value, line); refuses a key said twice."""
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
    """What PyYAML says of a text that it can't read."""
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
        except Exception as error:    # its constructors raise whatever Python's own do
            raise ConfigError(f'{place}: {_short(name)}: the value cannot be read: '
                              f'{_problem(error)}') from error
        entries.append((name, value, line))
    return entries


def _read_overrides(overrides, keys, removed):
    said = {}
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
        said[name] = (value, place)
    return said


def sections_of(keys):
    return sorted({name.split('.')[0] for name in keys if '.' in name})


def _check_known(name, keys, removed, place):
    if name in keys or name in removed:
        return
    sections = sections_of(keys)
    if name in sections:
        raise ConfigError(f'{place}: {name} is a section: set one of its keys')
    # A key under a wrong section is nearest to its namesake, whatever the section's name.
    last = {known.split('.')[-1]: known for known in keys}
    nearest = (difflib.get_close_matches(name, list(keys) + sections, n=1)
               or difflib.get_close_matches(name.split('.')[-1], last, n=1))
    same_key = last.get(name.split('.')[-1])
    known = same_key or (last.get(nearest[0], nearest[0]) if nearest else None)
    hint = f', did you mean {known}?' if known else f'; sections are {", ".join(sections)}'
    raise ConfigError(f'{place}: {_short(name)} is an unknown key{hint}')


def _short(text, most=80):
    """A text of the person's for messages, which are one line."""
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= most else f'{text[:most]}...'


# Types and limits

LIMITS = {    # name: (whether it is broken, words)
    'low': (lambda value, limit: value < limit, 'at least'),
    'high': (lambda value, limit: value > limit, 'at most'),
    'above': (lambda value, limit: value <= limit, 'more than'),
    'below': (lambda value, limit: value >= limit, 'less than'),
}


def _coerce(name, key, value, place):
    """A value as its key's type, within its limits."""
    if key.type is tuple:
        wanted, read = _list_reader(key)
    else:
        wanted, read = READERS[key.type]
    try:
        result = read(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f'{place}: {name} must be {wanted}, '
                          f'not {_short(repr(value))}') from None
    choices = key.metadata['choices']
    if choices and result not in choices:
        nearest = difflib.get_close_matches(str(result), choices, n=1)
        hint = f', did you mean {nearest[0]}?' if nearest else ''
        raise ConfigError(f'{place}: {name} must be one of '
                          f'{", ".join(choice or repr(choice) for choice in choices)}, '
                          f'not {_short(repr(result))}{hint}')
    for item in result if isinstance(result, tuple) else (result,):
        for limit, (is_broken, words) in LIMITS.items():
            at = key.metadata['limits'][limit]
            if at is not None and is_broken(item, at):
                raise ConfigError(f'{place}: {name} must be {words} {at}, '
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
    number = float(value)    # PyYAML reads 1e-6 as a text
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
    """What a tuple is called and how it is read, by what `option` says it is of."""
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
