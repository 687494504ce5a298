"""Train a network as a configuration says, and validate it on the way.

    python tools/train.py -c config/lit_data.yaml -o TRAIN.SEED=1

The run's folder, output/NAME_OF_THE_YAML_FILE, gets best.pdparams and last.pdparams (with EMA
also best_ema.pdparams and last_ema.pdparams), the resolved config.yaml, train.log, log.jsonl,
visualdl/ and checkpoints/. SIGTERM, SIGINT and SIGUSR1 let the run finish its step, save and leave
with exit code 75; with TRAIN.RESUME=auto the same command then goes on, and ends with the same
weights and log as a run that never stopped.
"""

import dataclasses
import functools
import platform
import time

from system import start

start.prepare()    # before Paddle, which reads what it sets

# isort: split
import paddle

import build
import config as configuration
from data import DataError
from data.decode import name_bad_images
from data.sources import label_warnings
from scheduler import format_rate
from system import command, distributed
from training.checkpoint import check_state, compare_runs, flat_keys, images_a_step
from training.folder import RunFolder
from training.log import progress
from training.meter import Clock, Meter
from training.signals import Stopped, StopRequest
from training.stepper import NotFinite
from val import evaluate

STARTED = time.monotonic()    # of the job, for TRAIN.TIME_LIMIT_HOURS
STEPS_BETWEEN_AGREEMENTS = 10    # with several processes, which must stop at the same step


class TrainingError(RuntimeError):
    """A run that can't go on."""


@dataclasses.dataclass
class Progress:
    """Where a run stands between two steps of the optimizer."""

    epoch: int = 0
    step: int = 0               # batches done in this epoch
    best: float = -1.0          # highest top-1 of a validation
    best_ema: float = -1.0      # the same of the averaged weights
    bad_images: dict = dataclasses.field(default_factory=dict)    # of the whole run: path: why


class Training:
    """A training run: the loop over epochs and batches.

    What it works with has one idea each: `stepper` moves the weights, `meter` and `clock` count,
    `folder` writes files.

    Args:
        config: the resolved configuration.
        force: resume also where the result would differ from that of one run.
    """

    def __init__(self, config, force=False):
        self.config = config
        self.folder = RunFolder(configuration.project_path(config.TRAIN.OUTPUT_DIR),
                                config.TRAIN.KEEP_CHECKPOINTS)
        self.train_loader, self.eval_loader = build.train_loader(config), build.eval_loader(config)
        self.groups = build.groups(config, self.train_loader)
        self.steps, self.epochs = len(self.groups), config.SCHEDULER.NUM_EPOCHS
        self.prepare, self.class_names = build.batch_transform(config), build.class_names(config)
        self.at, self.meter, self.clock = Progress(), Meter(), Clock()
        self.log_position, self.saved_at = None, time.monotonic()
        wanted = config.TRAIN.RESUME
        checkpoint, notes = self.folder.resume(
            wanted if wanted in ('auto', 'false') else configuration.project_path(wanted),
            functools.partial(self.go_on_from, force=force))
        if checkpoint is None:
            self.build_stepper()
        self.folder.open(functools.partial(configuration.save_config, config),
                         config.TRAIN.VISUALDL, self.log_position)
        if checkpoint is not None:
            notes += self.folder.go_back_to(checkpoint, self.steps_done)
        for note in notes:
            self.folder.warn(note)
        if self.log_position is None:
            self.describe()

    def build_stepper(self, epoch=0, step=0, fresh=True):
        # Before the first collective, in which processes of different runs would hang.
        distributed.agree(epoch=epoch, step=step, **{
            'training images': build.fingerprint(self.train_loader),
            **{name: value for name, value in flat_keys(dataclasses.asdict(self.config)).items()
               if name not in configuration.FREE_KEYS}})
        self.stepper, self.loaded, self.frozen = build.stepper(self.config, self.groups, fresh)

    def run(self):
        """Train to the end of the last epoch; returns the scores of the last validation.

        Raises:
            Stopped: saved, because that was asked for.
            LoaderError, TrainingError, DataError: what ended the run.
        """
        scores, limit = None, self.config.TRAIN.TIME_LIMIT_HOURS
        self.train_loader.poll = self.eval_loader.poll = self.stop_waiting_if_asked
        with StopRequest(limit, STARTED) as self.stop:
            while self.at.epoch < self.epochs:
                if self.at.step < self.steps:
                    self.train_epoch()
                    self.save()    # so that a signal during validation costs no step
                scores = self.validate_if_due() or scores
                self.at.epoch, self.at.step, self.meter = self.at.epoch + 1, 0, Meter()
                self.save()
                if self.at.epoch < self.epochs:
                    self.leave_if_asked()
        return self.finish(scores or evaluate(self.stepper.single, self.eval_loader))

    def train_epoch(self):
        """The batches of an epoch that are still to be done."""
        at, stepper, meter, clock = self.at, self.stepper, self.meter, self.clock
        self.train_loader.batch_sampler.set_epoch(at.epoch, at.step)
        stepper.begin_epoch(at.epoch, at.step)
        clock.restart()
        batches = distributed.in_step(self.train_loader, self.save_unfinished)
        for images, labels in progress(batches, f'epoch {at.epoch}', self.steps, at.step):
            clock.has_read()
            images, targets = self.prepare(images, labels, at.epoch, at.step)
            meter.add(self.step(images, targets))
            at.step += 1
            clock.has_trained(len(labels))
            if stepper.in_group:    # nothing to log or save before the optimizer's step
                continue
            if at.step == self.steps or self.has_passed(self.config.TRAIN.LOG_EVERY):
                replaced = report_bad_images(self.train_loader, at.bad_images, self.config,
                                             self.folder)
                self.log_step()
            if at.step < self.steps:
                self.save_or_leave_if_due()
        self.log_epoch(replaced)

    def step(self, images, targets):
        """Learn from the next batch; after too many bad steps end the run in one line."""
        try:
            return self.stepper.step(images, targets, self.at.epoch, self.at.step)
        except NotFinite as error:
            raise TrainingError(self.explain(error)) from error

    def validate_if_due(self):
        """Write the epoch's weights and score them where that is due; returns scores or None."""
        config, epoch, scores = self.config, self.at.epoch, None
        metadata = dict(model=config.MODEL.NAME, image_size=config.MODEL.IMAGE_SIZE,
                        class_names=self.class_names, epoch=epoch, trained_on=build.training_data(
                            config, self.train_loader.dataset.samples))
        if config.MODEL.NORM_EPSILON:
            metadata['norm_epsilon'] = config.MODEL.NORM_EPSILON
        averages = self.stepper.averages()
        # Written first: validation may find a bad image, and end the run.
        self.folder.write_weights('last', self.stepper.weights(), metadata)
        if averages:
            self.folder.write_weights('last_ema', averages, metadata)
        if (epoch + 1) % config.TRAIN.VAL_EVERY == 0 or epoch == self.epochs - 1:
            scores = self.validate('ImageNet', 'best', metadata)
            if averages:
                with self.stepper.averaged():
                    self.validate('EMA', 'best_ema', metadata)
        return scores

    def validate(self, kind, best, metadata):
        """Score the weights that the network holds, and keep them if they are the best so far.

        Args:
            kind: what its line in the log begins with: ImageNet, or EMA for averaged weights.
            best: the field of Progress, and the file, that remember the best of a kind.
        """
        scores = evaluate(self.stepper.single, self.eval_loader)
        self.folder.say(f'{kind} val acc is:{scores["top1"]:.4f}')
        event = 'validation' if kind == 'ImageNet' else 'validation_ema'
        self.folder.record(event, (self.at.epoch + 1) * self.steps, epoch=self.at.epoch, **scores)
        if scores['top1'] > getattr(self.at, best):
            setattr(self.at, best, scores['top1'])
            self.folder.write_weights(best, self.stepper.weights(), dict(
                metadata, top1=scores['top1'], top5=scores['top5']))
        return scores

    # ---- log

    def has_passed(self, number):
        """Whether the batches of the optimizer's step just done hold a multiple of a number."""
        return self.groups.passes(self.at.step - 1, number)

    def log_step(self):
        """Means over the epoch's images so far, and times since the line before."""
        at, rate, (loss, accuracy), times = (self.at, self.stepper.rate, self.meter.means(),
                                             self.clock.lap())
        if self.has_passed(self.config.TRAIN.LOG_EVERY):
            self.folder.say(
                f'Epoch [{at.epoch}/{self.epochs}], Step [{at.step}/{self.steps}], '
                f'Loss: {loss:.4f},acc: {accuracy:.4f}, read_time: {times["read_time"]:.4f}, '
                f'train_time: {times["train_time"]:.4f}, lr: {format_rate(rate)}')
        self.folder.record('step', self.steps_done, epoch=at.epoch, loss=loss, acc=accuracy,
                           lr=rate, **times)

    def log_epoch(self, replaced):
        at, (loss, accuracy) = self.at, self.meter.means()
        self.folder.say(f'Epoch [{at.epoch}/{self.epochs}], avg_Loss: {loss:.4f}, '
                        f'avg_acc: {accuracy:.4f}')
        if replaced:
            self.folder.say(f'bad images in epoch {at.epoch}: {replaced}, each replaced by the '
                            'next of its class')
        self.folder.record('epoch', self.steps_done, epoch=at.epoch, loss=loss, acc=accuracy,
                           skipped_steps=self.stepper.skipped_steps, bad_images=replaced)

    def finish(self, scores):
        self.folder.record('end', self.steps_done, best=self.at.best, **scores)
        self.folder.say(f'best val acc: {self.at.best:.4f}, weights in '
                        f'{self.config.TRAIN.OUTPUT_DIR}/')
        if self.stepper.averages():
            self.folder.say(f'best EMA val acc: {self.at.best_ema:.4f}')
        self.folder.say(f'ImageNet final val acc is:{scores["top1"]:.4f}')
        self.folder.close()
        if not self.stepper.has_stepped:
            raise TrainingError('no step had finite gradients: the weights are those that the run '
                                'began with; lower the learning rate, or look at the images')
        return scores

    def describe(self):
        """Say what is about to be trained."""
        config, loaded, frozen = self.config, self.loaded, self.frozen
        tensors, count, trainable = self.stepper.sizes()
        groups = (f', {config.TRAIN.ACCUMULATE} steps\' gradients accumulated'
                  if config.TRAIN.ACCUMULATE > 1 else '')
        self.folder.say(
            f'{config.MODEL.NAME} at {config.MODEL.IMAGE_SIZE} pixels, {count:,} parameters '
            f'({trainable:,} trainable); {len(self.train_loader.dataset):,} training and '
            f'{len(self.eval_loader.dataset):,} validation images; '
            f'{distributed.world_size()} process(es) of {config.TRAIN.TRAIN_BATCH_SIZE} '
            f'images a step{groups}, {start.threads()} thread(s) each')
        if loaded:
            self.folder.say(str(loaded))
        if frozen:
            self.folder.say(f'frozen: {", ".join(config.MODEL.FREEZE)} '
                            f'({len(frozen)} of {tensors} tensors)')
        self.folder.say(build.describe_rate(config))
        for line in label_warnings(self.train_loader.dataset.samples,
                                   self.eval_loader.dataset.samples):
            self.folder.say(f'warning: {line}')
        self.folder.record('start', 0, config=dataclasses.asdict(config), frozen=frozen,
                           weights=loaded and dataclasses.asdict(loaded), **environment())

    def explain(self, error):
        """The line that ends a run whose gradients are no longer finite."""
        at, sampler = self.at, self.train_loader.batch_sampler
        sampler.set_epoch(at.epoch, at.step)
        samples = self.train_loader.dataset.samples
        files = [samples[key[1]][0] for key in next(iter(sampler))]
        weights = self.folder.write_weights('not_finite', self.stepper.weights(),
                                            dict(epoch=at.epoch, step=at.step))
        good = self.folder.newest_checkpoint() or 'none was saved yet'
        return (f'{error}; the last good checkpoint is {good}, the weights of now are in '
                f'{weights}, the last batch was {", ".join(files[:4])}'
                f'{" ..." if len(files) > 4 else ""}: lower the rate, or look at these images')

    # ---- checkpoints

    @property
    def steps_done(self):
        """Batches done in the whole run."""
        return self.at.epoch * self.steps + self.at.step

    @functools.cached_property
    def identity(self):
        """What must be the same for two processes to be parts of one run."""
        return dict(config=dataclasses.asdict(self.config),
                    training_images=build.fingerprint(self.train_loader),
                    validation_images=build.fingerprint(self.eval_loader),
                    **environment())

    def save_unfinished(self):
        """Save in the middle of an epoch, also of a group of batches."""
        if self.stepper.in_group:    # back to the last step of the optimizer
            self.at.step, _ = self.groups.bounds(self.at.step)
        self.save()

    def save(self):
        """Write a checkpoint; called between two steps of the optimizer, without gradients."""
        sums = self.meter.state()
        if distributed.is_main():
            arrays, learnt = self.stepper.capture()
            position = dict(dataclasses.asdict(self.at), **sums,
                            skipped_steps=learnt['skipped_steps'])
            self.folder.save(self.steps_done, arrays, dict(
                position=position, loss_scale=learnt['loss_scale'], steps=self.steps,
                identity=self.identity))
        distributed.wait_for_all()
        self.saved_at = time.monotonic()

    def go_on_from(self, path, arrays, state, force):
        """Go to where a checkpoint says; returns lines for people. See RunFolder.resume."""
        check_state(state, path)
        notes = distributed.everywhere(compare_runs, state['identity'], self.identity, path, force,
                                       configuration.FREE_KEYS, configuration.DEFAULTS)
        position = dict(state['position'])
        self.build_stepper(position['epoch'], position['step'], fresh=False)
        self.stepper.restore(arrays, position.pop('skipped_steps'), state.get('loss_scale'), path)
        self.meter = Meter(*(position.pop(name) for name in ('loss_sum', 'correct', 'seen')))
        self.at = Progress(**position)
        if images_a_step(state['identity']) == images_a_step(self.identity):
            self.at.step = min(self.at.step, self.steps)
        elif state['steps'] != self.steps and self.at.step:
            notes.append(f'an epoch has {self.steps} steps now and had {state["steps"]}: epoch '
                         f'{self.at.epoch} starts again')
            self.at.step, self.meter = 0, Meter()
        self.log_position = state['log'] if self.folder.holds(path) else None
        return notes + [f'going on from {path}: epoch {self.at.epoch}, step {self.at.step} of '
                        f'{self.steps}']

    # ---- stopping

    def save_or_leave_if_due(self):
        """Save a checkpoint where one is due, and leave where that was asked for."""
        train = self.config.TRAIN
        leave = late = False
        if distributed.world_size() == 1 or self.has_passed(STEPS_BETWEEN_AGREEMENTS):
            late = train.SAVE_MINUTES and (
                time.monotonic() - self.saved_at > 60 * train.SAVE_MINUTES)
            reason = self.stop_reason()    # now: saving changes what a time limit says
            leave, late = distributed.any_of(bool(reason), bool(late))
        if leave or late or (train.SAVE_STEPS and self.has_passed(train.SAVE_STEPS)):
            self.save()
        if leave:
            self.leave(reason)

    def stop_waiting_if_asked(self):
        """Called while a batch is waited for, where one process may be the only one to wait."""
        reason = self.stop_reason()
        if reason:
            if self.stepper.in_group:
                self.at.step, _ = self.groups.bounds(self.at.step)
            self.leave(reason)

    def leave_if_asked(self):
        reason = self.stop_reason()
        if distributed.any_of(bool(reason))[0]:
            self.leave(reason)

    def stop_reason(self):
        return self.stop.reason(5 * self.folder.save_seconds())

    def leave(self, reason):
        reason = reason or 'another process was asked to stop'
        raise Stopped(f'{reason}: saved in epoch {self.at.epoch}, step {self.at.step} of '
                      f'{self.steps}; the same command with TRAIN.RESUME=auto goes on')


def report_bad_images(loader, known, config, log):
    """Name the training images that could not be read, each once in a run.

    All processes call this together and learn what the others found.

    Args:
        loader: its `bad_images` are those of the epoch so far, in this process.
        known: those of the run so far, in all processes, path to message; is added to.

    Returns:
        How many images of the epoch have been replaced so far, in all processes.

    Raises:
        DataError: on every process, if they are more than TRAIN.MAX_BAD_IMAGES allows.
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
    """What a log must name for its figures to mean something."""
    return dict(paddle=paddle.__version__, python=platform.python_version(),
                device=paddle.device.get_device(), threads=start.threads(),
                processes=distributed.world_size())


def main(arguments):
    parser = command.parser(__doc__)
    configuration.add_arguments(parser)
    parser.add_argument('--force', action='store_true',
                        help='resume even where the result would differ from that of one run')
    options = parser.parse_args(arguments)
    config = build.load_config(options.config, options.override)
    distributed.init()
    Training(config, options.force).run()


if __name__ == '__main__':
    command.run(main)
