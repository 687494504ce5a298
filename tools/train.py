"""Train a network as a configuration says, and validate it on the way.

    python tools/train.py -c config/lit_data.yaml -o TRAIN.SEED=1

The run's folder, output/NAME_OF_THE_YAML_FILE, gets best.pdparams and last.pdparams (with EMA
also best_ema.pdparams and last_ema.pdparams), the resolved config.yaml, train.log, log.jsonl,
visualdl/ and checkpoints/. SIGTERM, SIGINT and SIGUSR1 let the run finish its step, save and leave
with exit code 75; with TRAIN.RESUME=auto the same command then goes on, and ends with the same
weights and log as a run that never stopped.
"""

import contextlib
import dataclasses
import functools
import math
import platform
import time
from pathlib import Path
from typing import NamedTuple, Optional

from system import start

start.prepare()    # before Paddle, which reads what it sets

# isort: split
import paddle

import build
import config as configuration
from data import DataError
from data.decode import name_bad_images
from data.sources import label_warnings
from recipe.loss import labels_of, logits_of
from recipe.optimizer import clip_gradients
from scheduler import format_rate
from system import command, distributed
from training.checkpoint import Checkpoints, capture, claim, compare_runs, restore, step_seed
from training.log import RunLog, progress
from training.signals import Stopped, StopRequest
from val import evaluate
from weights.container import read_checkpoint
from weights.files import write_weights

STARTED = time.monotonic()    # of the job, for TRAIN.TIME_LIMIT_HOURS
STEPS_BETWEEN_AGREEMENTS = 10    # with several processes, which must stop at the same step


class TrainingError(RuntimeError):
    """A run that can't go on."""


@dataclasses.dataclass
class Position:
    """Where a run stands; with the weights and the optimizer, all that the next step needs."""

    epoch: int = 0
    step: int = 0               # steps done in this epoch: batches
    best: float = -1.0          # highest top-1 of a validation
    best_ema: float = -1.0      # the same of the averaged weights
    loss_sum: float = 0.0       # over the epoch's images so far, of all processes
    correct: float = 0.0
    seen: float = 0.0
    skipped_steps: int = 0      # of the optimizer, in the whole run
    bad_images: dict = dataclasses.field(default_factory=dict)    # of the whole run: path: why


class Found(NamedTuple):
    """A checkpoint, as it was read."""

    path: Optional[str]
    arrays: dict = {}
    state: dict = {}
    notes: list = []    # about others, for the person


class Run:
    """A training run: what it works on, and where it stands.

    Args:
        config: the resolved configuration.
        force: resume also where the result would differ from that of one run.
    """

    def __init__(self, config, force=False):
        self.config = config
        self.rank = distributed.rank()
        self.folder = Path(configuration.project_path(config.TRAIN.OUTPUT_DIR))
        self.checkpoints = Checkpoints(self.folder / 'checkpoints', config.TRAIN.KEEP_CHECKPOINTS)
        if distributed.is_main():
            self.lock = claim(self.folder)
        distributed.wait_for_all()    # a job that was here before may still have saved
        checkpoint = self.find_checkpoint()
        self.build_network(checkpoint)
        self.train_loader, self.eval_loader = build.train_loader(config), build.eval_loader(config)
        self.steps = len(self.train_loader)
        self.class_names = build.class_names(config)
        self.prepare = build.batch_transform(config)
        self.loss = build.loss(config)
        self.position = Position()
        self.group = []      # (loss, correct, images) of the batches since the optimizer's step
        self.pending = []    # the same of earlier ones that are not in the position's sums yet
        self.bad_steps_in_a_row = 0
        self.restored = None    # what a checkpoint gave, until the optimizer's first step
        self.saved_at = time.monotonic()
        self.open_log(*self.resume(checkpoint, force))

    def build_network(self, checkpoint):
        """The network, and all that is made from its weights."""
        config = self.config
        paddle.seed(config.TRAIN.SEED)
        self.network = build.network(config)
        # A checkpoint has its own weights, and those that the run once began with may be gone.
        self.loaded = build.load_start(config, self.network) if checkpoint.path is None else None
        self.frozen = build.freeze_parts(config, self.network)
        self.trainable = [p for p in self.network.parameters() if not p.stop_gradient]
        self.schedule = build.schedule(config)
        self.optimizer = build.optimizer(config, self.network, self.schedule)
        self.precision = build.precision(config, self.network, self.optimizer)
        self.precise = self.precision.wrap(self.network)    # as it is called
        # Gives every process the weights of the first, so before the averages begin with them.
        self.model = (paddle.DataParallel(self.precise) if distributed.world_size() > 1
                      else self.precise)
        self.ema = build.ema(config, self.network)

    def open_log(self, position, notes):
        """Go on with the log at a position, or begin it in a folder of its own."""
        # Every process must have looked for a checkpoint before one of them makes the folder.
        distributed.wait_for_all()
        if distributed.is_main():
            if position is None:
                prepare_folder(self.folder)
            configuration.save_config(self.config, self.folder / 'config.yaml')
        self.log = RunLog(self.folder, self.config.TRAIN.VISUALDL, position)
        for note in notes:
            self.log.warn(note)
        if position is None:
            for line in self.describe():
                self.log.say(line)
            self.log.record('start', 0, config=dataclasses.asdict(self.config),
                            frozen=self.frozen,
                            weights=self.loaded and dataclasses.asdict(self.loaded),
                            **environment())

    # ---- checkpoints

    @functools.cached_property
    def identity(self):
        """What must be the same for two processes to be parts of one run."""
        return dict(config=dataclasses.asdict(self.config),
                    training_images=build.fingerprint(self.train_loader),
                    validation_images=build.fingerprint(self.eval_loader),
                    **environment())

    def find_checkpoint(self):
        """Read what TRAIN.RESUME names; without it, or where there is none, its path is None."""
        wanted = self.config.TRAIN.RESUME
        if wanted == 'false':
            return Found(None)
        if wanted == 'auto':
            path, arrays, state, damaged = self.checkpoints.latest()
            notes = [f'passed over a checkpoint: {problem}' for problem in damaged]
            return Found(path, arrays, state, notes)
        path = configuration.project_path(wanted)
        return Found(path, *read_checkpoint(path))

    def resume(self, checkpoint, force):
        """Go to where a checkpoint says; returns (the log's position there or None, notes)."""
        path, arrays, state, notes = checkpoint
        if path is None:
            return None, notes
        notes = notes + compare_runs(state['identity'], self.identity, path, force,
                                     configuration.FREE_KEYS, configuration.DEFAULTS)
        restore(self.network, self.optimizer, arrays, path, self.ema)
        self.precision.loss_scale.restore(state.get('loss_scale'), path)
        self.restored = arrays
        self.position = Position(**state['position'])
        if state['steps'] != self.steps and self.position.step:
            notes.append(f'an epoch has {self.steps} steps now and had {state["steps"]}: epoch '
                         f'{self.position.epoch} starts again')
            self.position = Position(epoch=self.position.epoch, best=self.position.best,
                                     best_ema=self.position.best_ema)
        notes.append(f'going on from {path}: epoch {self.position.epoch}, '
                     f'step {self.position.step} of {self.steps}')
        same_folder = Path(path).parent.parent.resolve() == self.folder.resolve()
        return (state['log'] if same_folder else None), notes

    def save(self):
        """Write a checkpoint; a disk that is full or read-only costs a warning, not the run."""
        self.add_pending()
        if distributed.is_main():
            state = dict(position=dataclasses.asdict(self.position), identity=self.identity,
                         steps=self.steps, log=self.log.position(),
                         loss_scale=self.precision.loss_scale.state())
            step = self.position.epoch * self.steps + self.position.step
            try:
                self.checkpoints.save(step, capture(self.network, self.optimizer, self.restored,
                                                    self.ema), state)
            except OSError as error:
                self.log.warn(f'no checkpoint was saved: {error}; training goes on, and the '
                              'checkpoint before is whole')
        distributed.wait_for_all()
        self.saved_at = time.monotonic()

    # ---- training

    def train(self):
        """Run to the end of the last epoch; returns the last validation's scores.

        Raises:
            Stopped: saved, because that was asked for.
            LoaderError, TrainingError, DataError: what ended the run.
        """
        epochs, scores = self.config.SCHEDULER.NUM_EPOCHS, None
        limit = self.config.TRAIN.TIME_LIMIT_HOURS
        with StopRequest(limit, STARTED) as self.stop_request:
            while self.position.epoch < epochs:
                if self.position.step < self.steps:
                    self.train_epoch()
                    self.save()    # so that a signal during validation costs no step
                scores = self.finish_epoch() or scores
                self.save()
                if self.position.epoch < epochs:
                    self.leave_if_asked()
        if scores is None:    # a finished run was started again
            scores = evaluate(self.precise, self.eval_loader)
        self.log.record('end', epochs * self.steps, best=self.position.best, **scores)
        self.log.say(f'best val acc: {self.position.best:.4f}, weights in '
                     f'{self.config.TRAIN.OUTPUT_DIR}/')
        if self.ema:
            self.log.say(f'best EMA val acc: {self.position.best_ema:.4f}')
        self.log.say(f'ImageNet final val acc is:{scores["top1"]:.4f}')
        self.log.close()
        return scores

    def train_epoch(self):
        """The steps of an epoch that are still to be done.

        Loss and accuracy of the log lines are means over the epoch's images so far, of all
        processes; read_time and train_time are means over the steps since the line before.
        Accuracy is that of the network as it trains; a mixed image counts as its larger part.
        """
        config, position = self.config, self.position
        self.schedule.step(self.progress())
        self.train_loader.batch_sampler.set_epoch(position.epoch, position.step)
        self.model.train()
        clock = Clock()
        for images, labels in progress(self.train_loader, f'epoch {position.epoch}',
                                       total=self.steps, done=position.step):
            clock.has_read()
            self.step(images, labels)
            position.step += 1
            clock.has_trained(len(labels))
            if self.group:    # in the middle of an optimizer step there is nothing to log or save
                continue
            if self.has_passed(config.TRAIN.LOG_EVERY) or position.step == self.steps:
                skipped = report_bad_images(self.train_loader, position.bad_images, config,
                                            self.log)
                self.log_step(clock)
                clock = Clock()
            if position.step < self.steps:
                self.save_or_leave_if_due()
        epoch, loss, accuracy = position.epoch, *self.means()
        self.log.say(f'Epoch [{epoch}/{config.SCHEDULER.NUM_EPOCHS}], avg_Loss: {loss:.4f}, '
                     f'avg_acc: {accuracy:.4f}')
        if skipped:
            self.log.say(f'bad images in epoch {epoch}: {skipped}, each replaced by the next of '
                         'its class')
        self.log.record('epoch', (epoch + 1) * self.steps, epoch=epoch, loss=loss, acc=accuracy,
                        skipped_steps=position.skipped_steps, bad_images=skipped)

    def step(self, images, labels):
        """Learn from pixels `[B, 3, S, S]` and labels `[B]`, the batch at the run's position.

        The optimizer's step follows the last batch of a group of TRAIN.ACCUMULATE. Gradients are
        means over the group's images, so a smaller batch at the end of an epoch weighs less.
        """
        epoch, step = self.position.epoch, self.position.step
        first, last = self.group_of(step)
        if self.config.SCHEDULER.UPDATE == 'step' and step == first:
            self.schedule.step(self.progress())
        paddle.seed(step_seed(self.config.TRAIN.SEED, self.rank, epoch * self.steps + step))
        images, targets = self.prepare(images, labels, epoch, step)
        # Processes share their gradients only with the last batch, when they are complete.
        alone = step < last and distributed.world_size() > 1
        with self.model.no_sync() if alone else contextlib.nullcontext():
            outputs = self.model(images)                        # (B, num_classes), or two of them
            loss = self.loss(outputs, targets, images)
            self.precision.scaled(loss * self.share_of(step)).backward()
        hits = logits_of(outputs).detach().argmax(axis=1) == labels_of(targets)
        self.group.append((loss.detach(), hits.astype('float64').sum(), len(labels)))
        if step == last:
            self.optimizer_step()

    def group_of(self, step):
        """First and last batch of the group that makes one optimizer step with batch `step`."""
        first = step - step % self.config.TRAIN.ACCUMULATE
        return first, min(first + self.config.TRAIN.ACCUMULATE, self.steps) - 1

    def share_of(self, step):
        """The part of its group's images that batch `step` holds."""
        first, last = self.group_of(step)
        images_in = self.train_loader.batch_sampler.batch_length
        return images_in(step) / sum(images_in(batch) for batch in range(first, last + 1))

    def has_passed(self, number):
        """Whether the batches of the optimizer step just done hold a multiple of a number."""
        first, last = self.group_of(self.position.step - 1)
        return (last + 1) // number > first // number

    def optimizer_step(self):
        """Move the weights by the gradients of the group, unless these are not finite."""
        # A loss that is not finite leaves no finite norm; processes share their gradients, so
        # all of them come to the same decision. The norm is the one number a step that the host
        # waits for.
        train, loss_scale = self.config.TRAIN, self.precision.loss_scale
        norm = clip_gradients(self.trainable, train.CLIP_NORM, loss_scale.value)
        if math.isfinite(norm):
            self.optimizer.step()
            self.restored = None
            if self.ema:
                self.ema.update(self.float32_state())
            self.pending += self.group
            self.bad_steps_in_a_row = 0
        else:
            self.position.skipped_steps += 1
            self.bad_steps_in_a_row += 1
            self.give_up_after_bad_steps(norm, loss=self.group[-1][0])
        loss_scale.update(math.isfinite(norm))
        self.group = []
        self.optimizer.clear_grad()

    def float32_state(self):
        return self.precision.float32_state(self.network, self.optimizer)

    def progress(self):
        """Where the schedule stands, in epochs."""
        done = self.position.step / self.steps if self.config.SCHEDULER.UPDATE == 'step' else 0
        return self.config.SCHEDULER.LAST_EPOCHS + 1 + self.position.epoch + done

    def add_pending(self):
        """Take the steps since the last time into the position's sums.

        One after the other, in float64: so the sums don't depend on when this is called, and a
        run that was stopped anywhere logs the same figures.
        """
        if not self.pending:
            return
        flat = [float(value) for loss, correct, images in self.pending
                for value in (float(loss) * images, float(correct), images)]
        totals = iter(distributed.all_reduce_sum(flat))
        for loss_sum, correct, seen in zip(totals, totals, totals):
            self.position.loss_sum += loss_sum
            self.position.correct += correct
            self.position.seen += seen
        self.pending = []

    def means(self):
        """Mean loss and accuracy of the epoch so far."""
        self.add_pending()
        seen = self.position.seen or math.nan    # every step was skipped
        return self.position.loss_sum / seen, self.position.correct / seen

    def log_step(self, clock):
        loss, accuracy = self.means()
        read_time, train_time, images_per_second = clock.means()
        position, rate = self.position, self.optimizer.get_lr()
        if self.has_passed(self.config.TRAIN.LOG_EVERY):
            self.log.say(
                f'Epoch [{position.epoch}/{self.config.SCHEDULER.NUM_EPOCHS}], '
                f'Step [{position.step}/{self.steps}], Loss: {loss:.4f},acc: {accuracy:.4f}, '
                f'read_time: {read_time:.4f}, train_time: {train_time:.4f}, '
                f'lr: {format_rate(rate)}')
        self.log.record('step', position.epoch * self.steps + position.step,
                        epoch=position.epoch, loss=loss, acc=accuracy, lr=rate,
                        read_time=read_time, train_time=train_time,
                        images_per_second=images_per_second)

    def finish_epoch(self):
        """Validate where it is due, write weights, move on to the next epoch."""
        config, epoch, scores = self.config, self.position.epoch, None
        metadata = dict(model=config.MODEL.NAME, image_size=config.MODEL.IMAGE_SIZE,
                        class_names=self.class_names, epoch=epoch,
                        trained_on=build.training_data(
                            config, self.train_loader.dataset.samples))
        if config.MODEL.NORM_EPSILON:
            metadata['norm_epsilon'] = config.MODEL.NORM_EPSILON
        # Written first: validation may find a bad image, and end the run.
        self.write_weights('last', metadata)
        if self.ema:
            self.write_weights('last_ema', metadata, self.ema.average)
        if (epoch + 1) % config.TRAIN.VAL_EVERY == 0 or epoch == config.SCHEDULER.NUM_EPOCHS - 1:
            scores = self.validate('ImageNet', 'best', metadata)
            if self.ema:
                with self.ema.in_network():
                    self.validate('EMA', 'best_ema', metadata)
        self.position = dataclasses.replace(self.position, epoch=epoch + 1, step=0, loss_sum=0.0,
                                            correct=0.0, seen=0.0)
        return scores

    def validate(self, kind, best, metadata):
        """Score the weights that the network holds, and keep them if they are the best so far.

        Args:
            kind: what its line in the log begins with: ImageNet, or EMA for averaged weights.
            best: the attribute of the position, and the file, that remember the best of a kind.
        """
        scores = evaluate(self.precise, self.eval_loader)
        self.log.say(f'{kind} val acc is:{scores["top1"]:.4f}')
        event = 'validation' if kind == 'ImageNet' else 'validation_ema'
        epoch = metadata['epoch']
        self.log.record(event, (epoch + 1) * self.steps, epoch=epoch, **scores)
        if scores['top1'] > getattr(self.position, best):
            setattr(self.position, best, scores['top1'])
            self.write_weights(best, dict(metadata, top1=scores['top1'], top5=scores['top5']))
        return scores

    def write_weights(self, name, metadata, state=None):
        """Write NAME.pdparams with a state dict, that of the network if none is given."""
        if not distributed.is_main():
            return
        try:
            write_weights(self.folder / f'{name}.pdparams', state or self.float32_state(),
                          metadata)
        except OSError as error:
            self.log.warn(f'{name}.pdparams was not saved: {error}; training goes on')

    # ---- stopping

    def save_or_leave_if_due(self):
        """Save a checkpoint where one is due, and leave where that was asked for.

        Called between two steps of the optimizer: a checkpoint holds no gradients.
        """
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

    def leave_if_asked(self):
        reason = self.stop_reason()
        if distributed.any_of(bool(reason))[0]:
            self.leave(reason)

    def stop_reason(self):
        return self.stop_request.reason(5 * self.checkpoints.save_seconds)

    def leave(self, reason):
        reason = reason or 'another process was asked to stop'
        raise Stopped(f'{reason}: saved in epoch {self.position.epoch}, step '
                      f'{self.position.step} of {self.steps}; the same command with '
                      'TRAIN.RESUME=auto goes on')

    def give_up_after_bad_steps(self, norm, loss):
        """End the run once too many steps in a row had gradients that are not finite."""
        if self.bad_steps_in_a_row < self.config.TRAIN.MAX_BAD_STEPS:
            return
        position, sampler = self.position, self.train_loader.batch_sampler
        sampler.set_epoch(position.epoch, position.step)
        samples = self.train_loader.dataset.samples
        files = [samples[key[1]][0] for key in next(iter(sampler))]
        inspection = self.folder / 'not_finite.pdparams'
        self.write_weights('not_finite', dict(epoch=position.epoch, step=position.step))
        good = next(iter(self.checkpoints.paths()), 'none was saved yet')
        raise TrainingError(
            f'{self.bad_steps_in_a_row} steps in a row had gradients that are not finite (norm '
            f'{norm}, loss {float(loss)}) up to epoch {position.epoch}, step {position.step}, at '
            f'learning rate {format_rate(self.optimizer.get_lr())}, loss scale '
            f'{self.precision.loss_scale.value:g}; the last good checkpoint is {good}, the weights '
            f'of now are in {inspection}, the last batch was {", ".join(files[:4])}'
            f'{" ..." if len(files) > 4 else ""}: lower the rate, or look at these images')

    def describe(self):
        """What is about to be trained, in lines for the person."""
        sizes = [(math.prod(p.shape), p.stop_gradient) for p in self.network.parameters()]
        trainable = sum(size for size, frozen in sizes if not frozen)
        config = self.config
        lines = [str(self.loaded)] if self.loaded else []
        if self.frozen:
            lines.append(f'frozen: {", ".join(config.MODEL.FREEZE)} '
                         f'({len(self.frozen)} of {len(sizes)} tensors)')
        groups = (f', {config.TRAIN.ACCUMULATE} steps\' gradients accumulated'
                  if config.TRAIN.ACCUMULATE > 1 else '')
        return [f'{config.MODEL.NAME} at {config.MODEL.IMAGE_SIZE} pixels, '
                f'{sum(size for size, _ in sizes):,} parameters ({trainable:,} trainable); '
                f'{len(self.train_loader.dataset):,} training and '
                f'{len(self.eval_loader.dataset):,} validation images; '
                f'{distributed.world_size()} process(es) of {config.TRAIN.TRAIN_BATCH_SIZE} '
                f'images a step{groups}, {start.threads()} thread(s) each', *lines,
                build.describe_rate(config),
                *(f'warning: {line}' for line in label_warnings(
                    self.train_loader.dataset.samples, self.eval_loader.dataset.samples))]


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


class Clock:
    """Where the time of some steps goes: reading or training."""

    def __init__(self):
        self.started = self.waiting_since = time.perf_counter()
        self.read_time = 0.0
        self.steps = self.images = 0

    def has_read(self):
        self.read_time += time.perf_counter() - self.waiting_since

    def has_trained(self, images):
        self.steps += 1
        self.images += images
        self.waiting_since = time.perf_counter()

    def means(self):
        """(read_time, train_time) a step in seconds, and images per second of all processes."""
        if paddle.device.is_compiled_with_cuda():
            paddle.device.cuda.synchronize()
        elapsed = time.perf_counter() - self.started
        return (self.read_time / self.steps, (elapsed - self.read_time) / self.steps,
                self.images * distributed.world_size() / elapsed)


def prepare_folder(folder):
    """Make the run's folder; an earlier run in it is moved aside, never written over."""
    if folder.exists() and any(folder.iterdir()):
        number = 1
        while (aside := folder.with_name(f'{folder.name}.{number}')).exists():
            number += 1
        folder.rename(aside)
        print(f'{folder} held an earlier run, which is now {aside}')
    folder.mkdir(parents=True, exist_ok=True)


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
    Run(config, options.force).train()


if __name__ == '__main__':
    command.run(main)
