"""Train and validate a network.

    python tools/train.py -c config/lit_data.yaml -o TRAIN.SEED=1

The run's folder is output/NAME_OF_THE_YAML_FILE. It contains best.pdparams and last.pdparams
(with EMA also best_ema.pdparams and last_ema.pdparams), the resolved config.yaml, train.log,
log.jsonl, visualdl/ and checkpoints/. On SIGTERM, SIGINT or SIGUSR1 the run finishes its step,
saves a checkpoint and exits with 75. With TRAIN.RESUME=auto the same command resumes it; weights
and log are then the same as without the interruption.
"""

import contextlib
import dataclasses
import functools
import math
import os
import platform
import shlex
import time
from pathlib import Path

from system import start

start.prepare()    # before Paddle, which reads what it sets

# isort: split
import paddle

import build
import config as configuration
from data import DataError
from data.decode import ImageError, name_bad_images
from data.sources import label_warnings
from figures.predictions import ImageGrid
from scheduler import format_rate
from system import command, distributed
from system.progress import duration
from training.checkpoint import check_state, compare_runs, flat_keys, images_a_step
from training.folder import RunFolder
from training.log import Bar
from training.meter import Clock, Meter
from training.signals import Stopped, StopRequest
from training.stepper import NotFinite
from val import evaluate
from zoo.macs import count_macs, total_macs

STARTED = time.monotonic()    # for TRAIN.TIME_LIMIT_HOURS
STEPS_BETWEEN_STOP_CHECKS = 10    # with several processes: all must stop at the same step


class TrainingError(RuntimeError):
    """A run that cannot continue."""


@dataclasses.dataclass
class Progress:
    """The state of the loop between two optimizer steps, as stored in a checkpoint."""

    epoch: int = 0
    step: int = 0               # batches of this epoch so far
    best: float = -1.0          # highest validation top-1
    best_epoch: int = 0         # number of epochs trained when it was reached; 0: unknown
    best_ema: float = -1.0      # highest validation top-1 of the EMA weights
    bad_images: dict = dataclasses.field(default_factory=dict)    # of the whole run: {path: error}


class Training:
    """A training run: the loop over epochs and batches.

    `stepper` updates the weights, `meter` and `clock` compute means, `folder` writes files.

    Args:
        config: the resolved configuration.
        force: resume even if the result will differ from that of an uninterrupted run.
    """

    def __init__(self, config, force=False):
        self.config = config
        self.folder = RunFolder(configuration.project_path(config.TRAIN.OUTPUT_DIR),
                                config.TRAIN.KEEP_CHECKPOINTS)
        self.train_loader, self.eval_loader = build.train_loader(config), build.eval_loader(
            config, again=True)
        self.groups = build.groups(config, self.train_loader)
        self.steps, self.epochs = len(self.groups), config.SCHEDULER.NUM_EPOCHS
        self.prepare, self.class_names = build.batch_transform(config), build.class_names(config)
        self.position, self.meter, self.clock = Progress(), Meter(), Clock()
        self.log_position, self.saved_at = None, time.monotonic()
        self.save_error = ''    # why the last checkpoint could not be written
        self.validation_seconds = 0.0    # of the last one, to estimate the time left
        wanted = config.TRAIN.RESUME
        checkpoint, notes = self.folder.resume(
            wanted if wanted in ('auto', 'false') else configuration.project_path(wanted),
            functools.partial(self.restore, force=force))
        if checkpoint is None:
            self.build_stepper()
        self.folder.open(functools.partial(configuration.save_config, config),
                         config.TRAIN.VISUALDL, self.log_position)
        if checkpoint is not None:
            notes += self.folder.rewind(checkpoint, self.steps_done)
        for note in notes:
            self.folder.warn(note)
        if self.log_position is None:
            self.describe()

    def build_stepper(self, epoch=0, step=0, fresh=True):
        """Build the stepper, after a check that all processes train the same; see build.stepper."""
        # Before the first collective, in which processes of different runs would hang.
        distributed.agree(epoch=epoch, step=step, **{
            'training images': build.fingerprint(self.train_loader),
            **{name: value for name, value in flat_keys(dataclasses.asdict(self.config)).items()
               if name not in configuration.FREE_KEYS}})
        self.stepper, self.loaded, self.frozen = build.stepper(self.config, self.groups, fresh)

    def run(self):
        """Train to the end of the last epoch; return the scores of the last validation.

        Raises:
            Stopped: on a signal or the time limit; it says whether a checkpoint was saved.
            LoaderError, TrainingError, DataError: the run has failed.
        """
        self.train_loader.poll = self.eval_loader.poll = self.stop_waiting_if_asked
        try:
            with StopRequest(self.config.TRAIN.TIME_LIMIT_HOURS, STARTED) as self.stop:
                scores = self.train()
        except Stopped as stopped:
            raise Stopped(f'{stopped}: {self.describe_saved()}') from stopped
        return self.finish(scores or evaluate(self.stepper.evaluated, self.eval_loader))

    def train(self):
        """Train and validate all remaining epochs; return the scores of the last validation."""
        scores = None
        while self.position.epoch < self.epochs:
            if self.position.step < self.steps:
                self.train_epoch()
                self.save()    # a signal during validation then loses no step
            scores = self.validate_if_due() or scores
            self.position.epoch += 1
            self.position.step, self.meter = 0, Meter()
            self.save()
            if self.position.epoch < self.epochs:
                self.stop_if_asked()
        return scores

    def train_epoch(self):
        """Train on the remaining batches of an epoch."""
        position, stepper, meter, clock = self.position, self.stepper, self.meter, self.clock
        self.train_loader.batch_sampler.set_epoch(position.epoch, position.step)
        stepper.begin_epoch(position.epoch, position.step)
        clock.restart()
        batches = distributed.in_step(self.train_loader, self.save_unfinished)
        with Bar(batches, self.describe_step, desc=f'Epoch [{position.epoch}/{self.epochs}]',
                 total=self.steps, initial=position.step) as batches:
            for images, labels in batches:
                clock.has_read()
                images, targets = self.prepare(images, labels, position.epoch, position.step)
                meter.add(self.step(images, targets))
                position.step += 1
                clock.has_trained(len(labels))
                if stepper.in_group:    # log and save only after an optimizer step
                    continue
                if position.step == self.steps or self.has_passed(self.config.TRAIN.LOG_EVERY):
                    replaced = report_bad_images(self.train_loader, position.bad_images,
                                                 self.config, self.folder)
                    self.log_step()
                if position.step < self.steps:
                    self.save_or_stop_if_due()
        self.log_epoch(replaced)

    def step(self, images, targets):
        """Train on the next batch; return the Batches to count (see Stepper.step)."""
        try:
            return self.stepper.step(images, targets, self.position.epoch, self.position.step)
        except NotFinite as error:
            raise TrainingError(self.explain(error)) from error

    def validate_if_due(self):
        """Write the weights of the epoch; validate them if due and return scores, else None."""
        config, epoch, scores = self.config, self.position.epoch, None
        metadata = dict(model=config.MODEL.NAME, image_size=config.MODEL.IMAGE_SIZE,
                        class_names=self.class_names, epoch=epoch,
                        **build.training_data(config, self.train_loader.dataset.samples))
        if config.MODEL.NORM_EPSILON:
            metadata['norm_epsilon'] = config.MODEL.NORM_EPSILON
        averages = self.stepper.averages()
        # Before validation, which may fail at an unreadable image.
        self.folder.write_weights('last', self.stepper.weights(), metadata)
        if averages:
            self.folder.write_weights('last_ema', averages, metadata)
        if self.is_validated(epoch):
            scores = self.validate('ImageNet', 'best', metadata)
            if averages:
                with self.stepper.averaged():
                    self.validate('EMA', 'best_ema', metadata)
        return scores

    def is_validated(self, epoch):
        """Return whether an epoch ends with a validation."""
        return (epoch + 1) % self.config.TRAIN.VAL_EVERY == 0 or epoch == self.epochs - 1

    def validate(self, kind, best, metadata):
        """Validate the current weights of the network; save them if they are the best so far.

        Args:
            kind: first word of the log line: ImageNet, or EMA for averaged weights.
            best: field of Progress, and name of the file, for the best of this kind.
        """
        train, images = self.config.TRAIN, self.eval_loader.dataset
        grid = ImageGrid(len(images), train.VISUALDL_IMAGES * train.VISUALDL)
        scores = evaluate(self.stepper.evaluated, self.eval_loader, predictions=grid)
        self.validation_seconds = scores['seconds'] * (2 if self.stepper.averages() else 1)
        self.folder.say(f'{kind} val acc is:{scores["top1"]:.4f}')
        event = 'validation' if kind == 'ImageNet' else 'validation_ema'
        epoch = self.position.epoch
        step = (epoch + 1) * self.steps
        self.folder.record(event, step, epoch=epoch, **scores)
        if distributed.is_main() and train.VISUALDL:
            with contextlib.suppress(ImageError):    # a file that is gone since it was read
                self.folder.log.picture(f'{event}/predictions', step,
                                        grid.draw(images.open, self.class_names))
            if train.VISUALDL_HISTOGRAMS and kind == 'ImageNet':
                self.folder.log.histograms(step, self.stepper.weights())
        if scores['top1'] > getattr(self.position, best):
            setattr(self.position, best, scores['top1'])
            if kind == 'ImageNet':
                self.position.best_epoch = epoch + 1
            self.folder.write_weights(best, self.stepper.weights(), dict(
                metadata, top1=scores['top1'], top5=scores['top5']))
        return scores

    # ---- log

    def describe_step(self, steps_per_second):
        """Return texts about the epoch so far and the time left, for its progress bar.

        Args:
            steps_per_second: None before the second step.
        """
        loss, accuracy = self.meter.estimate()
        texts = [] if math.isnan(loss) else [f'loss {loss:.3f}', f'top-1 {accuracy:.3f}']
        if steps_per_second:
            epochs = range(self.position.epoch, self.epochs)
            seconds = ((len(epochs) * self.steps - self.position.step) / steps_per_second
                       + self.validation_seconds * sum(map(self.is_validated, epochs)))
            left = (self.steps - self.position.step) / steps_per_second
            texts.insert(0, f'{duration(left)} left, run {duration(seconds)}')
            images = steps_per_second * build.batch_size(self.config) * distributed.world_size()
            texts.append(f'{images:.1f} images/s')
        return [*texts, f'lr {self.stepper.rate:.2g}']

    def has_passed(self, number):
        """Return whether the last optimizer step reached a multiple of `number`, in batches."""
        return self.groups.passes(self.position.step - 1, number)

    def log_step(self):
        """Log means over the epoch so far, and times since the last call."""
        position, rate = self.position, self.stepper.rate
        (loss, accuracy), times = self.meter.means(), self.clock.lap()
        if self.has_passed(self.config.TRAIN.LOG_EVERY):
            self.folder.say(
                f'Epoch [{position.epoch}/{self.epochs}], Step [{position.step}/{self.steps}], '
                f'Loss: {loss:.4f},acc: {accuracy:.4f}, read_time: {times["read_time"]:.4f}, '
                f'train_time: {times["train_time"]:.4f}, lr: {format_rate(rate)}')
        self.folder.record('step', self.steps_done, epoch=position.epoch, loss=loss, acc=accuracy,
                           lr=rate, **times)

    def log_epoch(self, replaced):
        """Log the means of the epoch; `replaced` is its number of unreadable images."""
        position, (loss, accuracy) = self.position, self.meter.means()
        self.folder.say(f'Epoch [{position.epoch}/{self.epochs}], avg_Loss: {loss:.4f}, '
                        f'avg_acc: {accuracy:.4f}')
        if replaced:
            self.folder.say(f'bad images in epoch {position.epoch}: {replaced}, each replaced by '
                            'the next of its class')
        self.folder.record('epoch', self.steps_done, epoch=position.epoch, loss=loss, acc=accuracy,
                           skipped_steps=self.stepper.skipped_steps, bad_images=replaced)

    def finish(self, scores):
        """Log the end of the run; return `scores`.

        Raises:
            TrainingError: if weights cannot be written, or every step was skipped.
        """
        self.require_weights()
        self.folder.record('end', self.steps_done, best=self.position.best, **scores)
        position = self.position
        folder = Path(configuration.project_path(self.config.TRAIN.OUTPUT_DIR))
        after = f' after {position.best_epoch} of {self.epochs} epochs' * (position.best_epoch > 0)
        self.folder.say(f'best val acc: {position.best:.4f}{after}, weights in '
                        f'{shown(folder / "best.pdparams")}')
        if self.stepper.averages():
            self.folder.say(f'best EMA val acc: {position.best_ema:.4f}')
        example = self.eval_loader.dataset.samples[0][0]
        following = [configuration.ROOT / 'tools' / 'predict.py', '-c', folder / 'config.yaml',
                     '--weights', folder / 'best.pdparams',
                     *([example] if os.path.isfile(example) and example.isprintable() else [])]
        self.folder.say(f'trained in {duration(self.folder.log.elapsed())}; next: python '
                        f'{shlex.join(map(shown, following))}')
        self.folder.say(f'ImageNet final val acc is:{scores["top1"]:.4f}')
        self.folder.close()
        if not self.stepper.has_stepped:
            raise TrainingError('no step had finite gradients: the weights are those that the run '
                                'began with; lower the learning rate, or look at the images')
        return scores

    def describe(self):
        """Log what will be trained."""
        config, loaded, frozen = self.config, self.loaded, self.frozen
        train, data, say = config.TRAIN, config.DATA_PATH, self.folder.say
        tensors, count, trainable = self.stepper.sizes()
        macs = total_macs(count_macs(self.stepper.single, config.MODEL.IMAGE_SIZE))['total']
        say(f'model: {config.MODEL.NAME} at {config.MODEL.IMAGE_SIZE} pixels, {count:,} parameters '
            f'({trainable:,} trainable), {macs / 1e9:.3g} G MACs an image')
        if loaded:
            say(str(loaded))
        if frozen:
            say(f'frozen: {", ".join(config.MODEL.FREEZE)} ({len(frozen)} of {tensors} tensors)')
        say(f'data: {len(self.train_loader.dataset):,} training images of '
            f'{data.TRAIN_DATASET_PATH}, {len(self.eval_loader.dataset):,} validation images of '
            f'{data.VAL_DATASET_PATH}')
        groups = (f', gradients of {train.ACCUMULATE} steps accumulated'
                  if train.ACCUMULATE > 1 else '')
        say(f'device: {paddle.device.get_device()}, {distributed.world_size()} process(es) of '
            f'{build.batch_size(config)} images a step, {start.threads()} thread(s) each{groups}')
        say(f'schedule: {self.epochs} epochs of {self.steps} steps, '
            f'{build.describe_schedule(config)}')
        for line in label_warnings(self.train_loader.dataset.samples.labels,
                                   self.eval_loader.dataset.samples.labels):
            say(f'warning: {line}')
        self.folder.record('start', 0, parameters=count, macs=macs,
                           config=dataclasses.asdict(config), frozen=frozen,
                           weights=loaded and dataclasses.asdict(loaded), **environment())

    def explain(self, error):
        """Return the message of a run whose gradients are no longer finite."""
        position, sampler = self.position, self.train_loader.batch_sampler
        sampler.set_epoch(position.epoch, position.step)
        samples = self.train_loader.dataset.samples
        files = [samples[key[1]][0] for key in next(iter(sampler))]
        weights = self.folder.write_weights('not_finite', self.stepper.weights(),
                                            dict(epoch=position.epoch, step=position.step))
        good = self.folder.newest_checkpoint() or 'none was saved yet'
        return (f'{error}; the last good checkpoint is {good}, the weights of now are in '
                f'{weights}, the last batch was {", ".join(files[:4])}'
                f'{" ..." if len(files) > 4 else ""}: lower the rate, or look at these images')

    # ---- checkpoints

    @property
    def steps_done(self):
        """Batches of the whole run so far."""
        return self.position.epoch * self.steps + self.position.step

    @functools.cached_property
    def identity(self):
        """Configuration, data and environment, compared when a run resumes."""
        return dict(config=dataclasses.asdict(self.config),
                    training_images=build.fingerprint(self.train_loader),
                    validation_images=build.fingerprint(self.eval_loader),
                    **environment())

    def save_unfinished(self):
        """Save within an epoch, at the last optimizer step."""
        if self.stepper.in_group:    # back to the last optimizer step
            self.position.step, _ = self.groups.bounds(self.position.step)
        self.save()

    def save(self):
        """Write a checkpoint; called between two optimizer steps, when there are no gradients."""
        sums = self.meter.state()

        def write():
            arrays, learnt = self.stepper.capture()
            position = dict(dataclasses.asdict(self.position), **sums,
                            skipped_steps=learnt['skipped_steps'])
            return self.folder.save(self.steps_done, arrays, dict(
                position=position, loss_scale=learnt['loss_scale'], steps=self.steps,
                identity=self.identity))

        self.save_error = distributed.from_main(write)
        self.saved_at = time.monotonic()

    def require_weights(self):
        """Raise a TrainingError if the weights of the run cannot be written."""
        unsaved = distributed.from_main(self.folder.write_unsaved)
        if not unsaved:
            return
        checkpoint = self.folder.newest_checkpoint()
        if not self.save_error:
            following = f'the last weights are in {checkpoint}, which --weights takes, too'
        elif checkpoint:
            following = f'the same command with TRAIN.RESUME=auto goes on from {checkpoint}'
        else:
            following = 'there is no checkpoint, so they are lost'
        raise TrainingError(f'trained to the end, but {", ".join(unsaved)} cannot be written '
                            f'({next(iter(unsaved.values()))}); {following}')

    def describe_saved(self):
        """Return what was saved of a run that stops here, and where the same command goes on."""
        place = f'in epoch {self.position.epoch}, step {self.position.step} of {self.steps}'
        if not self.save_error:
            lost = ''.join(f', without {name}.pdparams' for name in self.folder.unsaved)
            return f'saved {place}{lost}; the same command with TRAIN.RESUME=auto goes on'
        checkpoint = self.folder.newest_checkpoint()
        after = (f'goes on from {checkpoint}' if checkpoint else
                 'starts again, as there is no checkpoint')
        return (f'not saved {place} ({self.save_error}); the same command with TRAIN.RESUME=auto '
                f'{after}')

    def restore(self, path, arrays, state, force):
        """Restore the state of a checkpoint; return notes for the log. See RunFolder.resume."""
        check_state(state, path)
        notes = distributed.everywhere(compare_runs, state['identity'], self.identity, path, force,
                                       configuration.FREE_KEYS, configuration.DEFAULTS,
                                       configuration.FORMER_VALUES)
        saved = dict(state['position'])
        self.build_stepper(saved['epoch'], saved['step'], fresh=False)
        self.stepper.restore(arrays, saved.pop('skipped_steps'), state.get('loss_scale'), path)
        self.meter = Meter(*(saved.pop(name) for name in ('loss_sum', 'correct', 'seen')))
        self.position = Progress(**saved)
        if images_a_step(state['identity']) == images_a_step(self.identity):
            self.position.step = min(self.position.step, self.steps)
        elif state['steps'] != self.steps and self.position.step:
            notes.append(f'an epoch has {self.steps} steps now and had {state["steps"]}: epoch '
                         f'{self.position.epoch} starts again')
            self.position.step, self.meter = 0, Meter()
        self.log_position = state['log'] if self.folder.contains(path) else None
        return notes + [f'going on from {path}: epoch {self.position.epoch}, '
                        f'step {self.position.step} of {self.steps}']

    # ---- stopping

    def save_or_stop_if_due(self):
        """Save a checkpoint if one is due, or if a signal or the time limit asks to stop."""
        train = self.config.TRAIN
        stop = late = False
        if distributed.world_size() == 1 or self.has_passed(STEPS_BETWEEN_STOP_CHECKS):
            late = train.SAVE_MINUTES and (
                time.monotonic() - self.saved_at > 60 * train.SAVE_MINUTES)
            reason = self.stop_reason()    # before saving, which takes time
            stop, late = distributed.any_of(bool(reason), bool(late))
        if stop or late or (train.SAVE_STEPS and self.has_passed(train.SAVE_STEPS)):
            self.save()
        if stop:
            self.raise_stopped(reason)

    def stop_waiting_if_asked(self):
        """Called while waiting for a batch, where collectives are not possible."""
        reason = self.stop_reason()
        if reason:
            if self.stepper.in_group:
                self.position.step, _ = self.groups.bounds(self.position.step)
            self.raise_stopped(reason)

    def stop_if_asked(self):
        """Stop all processes if one of them was asked to."""
        reason = self.stop_reason()
        if distributed.any_of(bool(reason))[0]:
            self.raise_stopped(reason)

    def stop_reason(self):
        """Return why to stop now, or None; saving five times must fit into the time limit."""
        return self.stop.reason(5 * self.folder.save_seconds())

    def raise_stopped(self, reason):
        """Raise Stopped; run() adds to it what was saved."""
        raise Stopped(reason or 'another process was asked to stop')


def shown(path):
    """Return a path for people: relative to the current folder if it is in it."""
    inside = os.path.isabs(path) and Path.cwd() in Path(path).parents
    return os.path.relpath(path) if inside else str(path)


def report_bad_images(loader, known, config, log):
    """Log the training images that could not be read, each once in a run.

    All processes must call this together.

    Args:
        loader: its `bad_images` are those of this process in the epoch so far.
        known: {path: error} of all processes in the run so far; updated in place.

    Returns:
        Number of images replaced in the epoch so far, over all processes.

    Raises:
        DataError: on every process, if they exceed TRAIN.MAX_BAD_IMAGES.
    """
    found = {}
    for part in distributed.gather_objects(loader.bad_images):
        found.update(part)
    for path in sorted(found.keys() - known.keys()):
        log.say(f'skipped image {found[path]}')
    known.update(found)
    count, limit = len(loader.dataset), config.TRAIN.MAX_BAD_IMAGES
    if known and len(known) / count > limit:
        raise DataError(f'{len(known)} of {count} training images cannot be read, more than the '
                        f'share of {limit:g} that TRAIN.MAX_BAD_IMAGES allows (repair them, or '
                        f'raise it): {name_bad_images([known[path] for path in sorted(known)], 3)}')
    return len(found)


def environment():
    """Return the versions, device, threads and processes of this run, for log and checkpoint."""
    return dict(paddle=paddle.__version__, python=platform.python_version(),
                device=paddle.device.get_device(), threads=start.threads(),
                processes=distributed.world_size())


def main(arguments):
    parser = command.parser(__doc__)
    configuration.add_arguments(parser)
    parser.add_argument('--force', action='store_true',
                        help='resume even if the result will differ from an uninterrupted run')
    options = parser.parse_args(arguments)
    config = build.load_config(options.config, options.override)
    distributed.init()
    Training(config, options.force).run()


if __name__ == '__main__':
    command.run(main)
