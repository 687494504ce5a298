"""Freeze parts of a network."""

import difflib


def freeze(network, prefixes):
    """Freeze parameters: they get no gradient and are not passed to the optimizer.

    Args:
        network: an ImageClassifier.
        prefixes: beginnings of parameter names, up to a dot: 'blocks.1' does not include
            'blocks.10'. 'backbone' is everything except the heads.

    Returns:
        The sorted names of the frozen parameters.

    Raises:
        ValueError: for a prefix of no parameter (the message suggests the nearest known one), or
            if no parameter would remain trainable.
    """
    parameters = dict(network.named_parameters())
    frozen = set()
    for prefix in prefixes:
        if prefix == 'backbone':
            heads = network.heads
            names = {name for name in parameters if not lies_in(name, heads)}
        else:
            names = {name for name in parameters if lies_in(name, [prefix])}
        if not names:
            parts = {'.'.join(name.split('.')[:length]) for name in parameters
                     for length in range(1, name.count('.') + 2)}
            nearest = difflib.get_close_matches(prefix, sorted(parts | {'backbone'}), n=1)
            known = ', '.join(dict.fromkeys(name.split('.')[0] for name in parameters))
            hint = (f'did you mean {nearest[0]}?' if nearest else
                    f'it begins with one of backbone, {known}')
            raise ValueError(f'{prefix!r} begins the name of no parameter; {hint}')
        frozen |= names
    if all(name in frozen or parameter.stop_gradient for name, parameter in parameters.items()):
        raise ValueError('leaves nothing to train; let the head train at least')
    for name in frozen:
        parameters[name].stop_gradient = True
    return sorted(frozen)


def lies_in(name, parts):
    """Whether a parameter's name is one of the parts or begins with one and a dot."""
    return any(name == part or name.startswith(f'{part}.') for part in parts)
