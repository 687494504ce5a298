"""Content of a checkpoint: the state that the next step of a run depends on.

A checkpoint is a container with a checksum (weights/container.py). It holds the weights, their EMA,
the optimizer state by structured parameter names, and everything else as JSON.

No random state is saved: random numbers depend only on the seed of the run and the number of the
epoch, step, image or process (see stepper.step_seed and dataset.ImageDataset). Paddle 2.6.2 could
not save it: its random state is empty.
"""

import json
import re

import numpy as np
import paddle

from weights.container import CheckpointError


class IncompatibleRun(CheckpointError):
    """A valid checkpoint of a run that would have another result."""


def capture(network, optimizer, restored=None, ema=None):
    """Return weights, optimizer state and EMA as {name: array}, by structured parameter names.

    Paddle's keys of optimizer state (linear_0.w_0_moment1_0) depend on which layers a process has
    built before; here they are `optimizer/moment1/head.weight`.

    Args:
        restored: arrays that the optimizer was restored from, until its first step. Paddle
            creates the state of an optimizer in that step; before, state_dict() is empty.
        ema: a recipe.ema.Ema, stored as `ema/NAME`, or None.
    """
    arrays = {f'network/{name}': value.numpy() for name, value in network.state_dict().items()}
    names = _structured_names(network)
    for key, value in optimizer.state_dict().items():
        if key == 'LR_Scheduler':    # computed from epoch and step
            continue
        if key == 'master_weights':
            arrays.update({f'optimizer/master_weights/{names[name]}': np.asarray(weight)
                           for name, weight in value.items()})
            continue
        automatic, kind = _split_key(key, names)
        arrays[f'optimizer/{kind}/{names[automatic]}'] = np.asarray(value)
    if restored:
        arrays.update({name: array for name, array in restored.items()
                       if name.startswith('optimizer/')})
    if ema:
        arrays.update({f'ema/{name}': array for name, array in ema.state_dict().items()})
    return arrays


def restore(network, optimizer, arrays, path, ema=None):
    """Restore what `capture` returned. An EMA that is not in `arrays` starts at the weights.

    Raises:
        CheckpointError: if the arrays belong to another network or optimizer.
    """
    state = network.state_dict()
    stored = _below('network/', arrays)
    wrong = sorted(set(stored) ^ set(state)) or sorted(
        name for name in state if tuple(state[name].shape) != stored[name].shape)
    if wrong:
        raise CheckpointError(f'{path}: belongs to another network ({", ".join(wrong[:5])})')
    wrong = [name for name in state if state[name].numpy().dtype != stored[name].dtype]
    if wrong:
        raise CheckpointError(f'{path}: has weights of another precision ({", ".join(wrong[:5])}): '
                              'restore the value of TRAIN.AMP')
    check_optimizer_state(network, arrays, path)
    for name, value in state.items():
        value.set_value(stored[name])

    automatic = {structured: name for name, structured in _structured_names(network).items()}
    masters = {name: tensor.name for name, tensor
               in optimizer.state_dict().get('master_weights', {}).items()}
    existing = {_split_key(key, automatic.values()): key for key in optimizer.state_dict()
                if key not in ('LR_Scheduler', 'master_weights')}
    mastered = {name.split('/', 2)[2] for name in arrays
                if name.startswith('optimizer/master_weights/')}
    # Paddle requires the state of a schedule; the caller sets it from epoch and step.
    loaded = {key: value for key, value in optimizer.state_dict().items() if key == 'LR_Scheduler'}
    for name, array in arrays.items():
        if not name.startswith('optimizer/'):
            continue
        _, kind, structured = name.split('/', 2)
        name = automatic[structured]
        # For a parameter with a master weight Paddle uses the name of the master weight.
        owner = masters.get(name, f'{name}_fp32_master_0') if structured in mastered else name
        if kind == 'master_weights':
            weight = paddle.to_tensor(array)
            weight.name = owner
            loaded.setdefault(kind, {})[name] = weight
            continue
        loaded[existing.get((name, kind), f'{owner}_{kind}_0')] = array
    optimizer.set_state_dict(loaded)

    averages = _below('ema/', arrays)
    if ema and averages:
        try:
            ema.load_state_dict(averages)
        except ValueError as error:
            raise CheckpointError(f'{path}: has {error}') from error
    elif ema:
        ema.start()


def check_optimizer_state(network, arrays, path):
    """Check that the arrays have the names and shapes that `capture` writes.

    Raises:
        CheckpointError: names the first unexpected or missing array.
    """
    trainable = {name: p for name, p in network.named_parameters() if not p.stop_gradient}
    owners = {}    # kind: names of parameters
    for name, array in arrays.items():
        part, _, rest = name.partition('/')
        kind, _, owner = rest.partition('/')
        if part not in ('network', 'optimizer', 'ema'):
            raise CheckpointError(f'{path}: has unexpected content ({name})')
        if part != 'optimizer':
            continue
        if owner not in trainable:
            raise CheckpointError(f'{path}: has optimizer state for {owner or rest}, which does '
                                  'not train here')
        if array.size not in (1, trainable[owner].size):
            raise CheckpointError(f'{path}: has unexpected content ({name} of shape '
                                  f'{array.shape})')
        owners.setdefault(kind, set()).add(owner)
    kinds = [kind for kind in owners if kind != 'master_weights']
    for kind in kinds:    # an optimizer keeps the same state for each parameter
        lacking = sorted(set().union(*(owners[other] for other in kinds)) - owners[kind])
        if lacking:
            raise CheckpointError(f'{path}: lacks optimizer/{kind}/{lacking[0]}')


def _below(prefix, arrays):
    return {name[len(prefix):]: array for name, array in arrays.items() if name.startswith(prefix)}


def _structured_names(network):
    """Return {automatic name: structured name} of the trainable parameters."""
    return {parameter.name: name for name, parameter in network.named_parameters()
            if not parameter.stop_gradient}


def _split_key(key, automatic_names):
    """Split linear_0.w_0_moment1_0 or linear_0.w_0_fp32_master_0_moment1_0 into
    ('linear_0.w_0', 'moment1').
    """
    name = max((name for name in automatic_names if key.startswith(name + '_')), key=len)
    return name, re.sub(r'^fp32_master_\d+_|_\d+$', '', key[len(name) + 1:])


# Fields of the state of a checkpoint, and of its parts, with their types.
STATE = dict(position=dict, identity=dict, steps=int, log=dict, loss_scale=dict)
POSITION = dict(epoch=int, step=int, best=float, best_epoch=int, best_ema=float, loss_sum=float,
                correct=float, seen=float, skipped_steps=int, bad_images=dict)
LOG = dict(text=int, records=int, visualdl=int, elapsed=float)
# Fields that earlier versions did not write, with the value for unknown.
ADDED = dict(position=dict(best_epoch=0), log=dict(visualdl=0))
IDENTITY = dict(config=dict, training_images=str, validation_images=str, processes=int, paddle=str,
                python=str, device=str, threads=int)


def check_state(state, path):
    """Check the fields of a checkpoint's state, their types and ranges.

    Raises:
        CheckpointError: names the field.
    """
    def check(part, fields, where):
        for name in sorted(set(fields) ^ set(part)):
            refuse(f'{where}{name} {"is missing" if name in fields else "is not expected"}')
        for name, kind in fields.items():
            value, numbers = part[name], (int, float) if kind is float else kind
            if not isinstance(value, numbers) or (
                    kind in (int, float) and isinstance(value, bool) or kind is int and value < 0):
                refuse(f'{where}{name} is {value!r:.40}')

    def refuse(what):
        raise CheckpointError(f'{path}: has unexpected content ({what})')

    check(state, STATE, '')
    for name, fields in ADDED.items():
        state[name] = {**fields, **state[name]}
    for name, fields in (('position', POSITION), ('log', LOG), ('identity', IDENTITY)):
        check(state[name], fields, f'{name}.')
    config, position = state['identity']['config'], state['position']
    check(flat_keys(config), {**dict.fromkeys(flat_keys(config), object),
                              'SCHEDULER.NUM_EPOCHS': int, 'TRAIN.TRAIN_BATCH_SIZE': int},
          'identity.config.')
    for name, last in (('epoch', config['SCHEDULER']['NUM_EPOCHS']), ('step', state['steps'])):
        if position[name] > last:
            refuse(f'position.{name} is {position[name]} of {last}')


def images_a_step(identity):
    """Return the images of one batch over all processes of a run."""
    train = identity['config']['TRAIN']
    processes = 1 if train.get('SPLIT_BATCH') else identity.get('processes', 1)
    return processes * train['TRAIN_BATCH_SIZE']


ROUNDING_ONLY = ('paddle', 'python', 'device', 'threads')


def compare_runs(before, now, path, force, free_keys=(), defaults=None, former=None):
    """Compare a resumed run with the run that wrote the checkpoint.

    Args:
        before, now: their `identity` dicts: config, processes, data lists, environment.
        force: accept differences that change the result.
        free_keys: keys that may differ because they do not change the result.
        defaults: {key: value} for keys that only one of the configurations has, because the
            program has removed or added them.
        former: {key: {former value: present value with the same meaning}}.

    Returns:
        Notes for the log, one for each difference.

    Raises:
        IncompatibleRun: for a difference that changes the result, without `force`.
    """
    now, defaults = json.loads(json.dumps((now, defaults or {})))    # tuples become lists
    former = former or {}
    pairs = {name: (before.get(name), now[name]) for name in now if name != 'config'}
    old, new = ({**defaults, **flat_keys(run['config'])} for run in (before, now))
    old.update({name: values[old[name]] for name, values in former.items()
                if old.get(name) in values})
    pairs.update({name: (old.get(name), new.get(name)) for name in sorted({**old, **new})})
    differing = {name: f'{name} was {old} and is {new}'
                 for name, (old, new) in pairs.items() if old != new}
    notes = [f'{line}: results may differ in their last bits' for name, line in differing.items()
             if name in ROUNDING_ONLY]
    notes += [line for name, line in differing.items() if name in free_keys]
    if images_a_step(before) == images_a_step(now):
        for name in ('TRAIN.TRAIN_BATCH_SIZE', 'TRAIN.SPLIT_BATCH'):
            differing.pop(name, None)
        if differing.pop('processes', None):
            notes.append(f'{before["processes"]} processes are now {now["processes"]}, at the same '
                         f'{images_a_step(now)} images a step: each step sees the same images with '
                         'the same crops; dropout, drop path, mixing and erasing use other random '
                         'numbers')
    incompatible = [line for name, line in differing.items()
                    if name not in free_keys and name not in ROUNDING_ONLY]
    if incompatible and not force:
        raise IncompatibleRun(f'{path}: is from a run whose result would differ: '
                              f'{"; ".join(incompatible)}; restore these values, start a new run '
                              'with TRAIN.RESUME=false, or resume with --force')
    return notes + [f'{line}: with --force; the result is no longer that of one run'
                    for line in incompatible]


def flat_keys(config):
    """Flatten a nested configuration to {'SECTION.KEY': value}."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat.update({f'{name}.{key}': item for key, item in value.items()})
        else:
            flat[name] = value
    return flat
