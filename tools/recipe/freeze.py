"""Parts of a network that keep their weights while the rest trains."""

import difflib


def freeze(network, prefixes):
    """Keep parameters as they are: they get no gradient, and no optimizer takes them.

    Args:
        network: its `heads` name the layers that give logits.
        prefixes: parts of parameter names, from the left and up to a dot: 'blocks.1' is the second
            block and not the eleventh. 'backbone' is all but the heads.

    Returns:
        The names of the parameters that are frozen now.

    Raises:
        ValueError: for a prefix of no parameter, with the nearest known one, and where nothing
            would be left to train.
    """
    parameters = dict(network.named_parameters())
    frozen = set()
    for prefix in prefixes:
        if prefix == 'backbone':
            heads = network.heads
            found = {name for name in parameters if not lies_in(name, heads)}
        else:
            found = {name for name in parameters if lies_in(name, [prefix])}
        if not found:
            parts = {'.'.join(name.split('.')[:length]) for name in parameters
                     for length in range(1, name.count('.') + 2)}
            nearest = difflib.get_close_matches(prefix, sorted(parts | {'backbone'}), n=1)
            known = ', '.join(dict.fromkeys(name.split('.')[0] for name in parameters))
            hint = (f'did you mean {nearest[0]}?' if nearest else
                    f'it begins with one of backbone, {known}')
            raise ValueError(f'{prefix!r} begins the name of no parameter; {hint}')
        frozen |= found
    if all(name in frozen or parameter.stop_gradient for name, parameter in parameters.items()):
        raise ValueError('leaves nothing to train; let the head train at least')
    for name in frozen:
        parameters[name].stop_gradient = True
    return sorted(frozen)


def lies_in(name, parts):
    """Whether a parameter's name is one of the parts, or begins with one up to a dot."""
    return any(name == part or name.startswith(f'{part}.') for part in parts)
