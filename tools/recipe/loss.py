"""Training losses: cross entropy with labels or mixed targets, and distillation from a teacher.

Every loss is called with (outputs, targets, images). Outputs are the network's in training: logits
`[B, num_classes]`, or of a network with a distillation token two of them, (logits, dist_logits).
Targets are labels, int64 `[B]`, or distributions, float32 `[B, num_classes]`.
"""

import paddle
from paddle.nn import functional as F


def logits_of(outputs):
    """One `[B, num_classes]` of outputs: two heads are averaged, as they are in evaluation."""
    return (outputs[0] + outputs[1]) / 2 if isinstance(outputs, (tuple, list)) else outputs


def labels_of(targets):
    """Labels int64 `[B]` of targets: of a mixed image that of its larger part."""
    return targets if targets.ndim == 1 else targets.argmax(axis=1)


def hits(outputs, targets):
    """Whether each image of a batch is classified as its (larger) label says: bool `[B]`."""
    return logits_of(outputs).detach().argmax(axis=1) == labels_of(targets)


class CrossEntropy:
    """Mean cross entropy of a batch.

    Args:
        smoothing: share of a label spread evenly over all classes. Distributions are taken as
            they are: what mixes labels smooths them.
    """

    def __init__(self, smoothing=0.0):
        self.smoothing = smoothing

    def __call__(self, outputs, targets, images=None):
        logits = logits_of(outputs)
        if targets.ndim == 1 and self.smoothing:
            targets = F.label_smooth(F.one_hot(targets, logits.shape[1]), epsilon=self.smoothing)
        return F.cross_entropy(logits, targets, soft_label=targets.ndim > 1)


class DistillationLoss:
    """Learning from a teacher beside the labels (Touvron et al., ICML 2021, section 4).

    (1 - alpha) * base_loss of the class head + alpha * distillation of the other head:

        hard  cross entropy with the class that the teacher finds best
        soft  tau ** 2 * KL(teacher || student), both softened by the temperature tau, as a mean
              over images and classes (the official DeiT code divides by both)

    Args:
        base_loss: called with (logits, targets).
        teacher: images float32 `[B, 3, S, S]` to logits `[B, num_classes]`; asked without
            gradients, for the very pixels that the student sees, mixed and erased.
        kind: 'hard' or 'soft'.
        alpha: the teacher's part of the loss, 0 to 1.
        tau: temperature of 'soft', above 0.

    Raises:
        ValueError: for an unknown kind; when called, for one head with 'hard'. With 'soft' one
            head may learn from both, as in Hinton et al. (2015): what the teacher says is a
            distribution, which the labels' one can be mixed with. Two hard labels that contradict
            each other would only be noise.
    """

    def __init__(self, base_loss, teacher, kind='hard', alpha=0.5, tau=1.0):
        if kind not in ('hard', 'soft'):
            raise ValueError(f"kind must be 'hard' or 'soft', not {kind!r}")
        self.base_loss = base_loss
        self.teacher = teacher
        self.kind = kind
        self.alpha = alpha
        self.tau = tau

    def __call__(self, outputs, targets, images):
        if isinstance(outputs, (tuple, list)):
            logits, dist_logits = outputs
        elif self.kind == 'hard':
            raise ValueError('hard distillation needs a network with two heads, one whose name '
                             'has `distilled` in it; soft distillation takes any')
        else:
            logits = dist_logits = outputs
        with paddle.no_grad():
            teacher_logits = self.teacher(images)                          # (B, num_classes)
        if self.kind == 'hard':
            distillation = F.cross_entropy(dist_logits, teacher_logits.argmax(axis=1))
        else:
            distillation = soft_distillation(dist_logits, teacher_logits, self.tau)
        return (1 - self.alpha) * self.base_loss(logits, targets) + self.alpha * distillation


def soft_distillation(logits, teacher_logits, tau):
    """tau ** 2 times the mean over images and classes of p log(p / q), p being the teacher's."""
    log_student = F.log_softmax(logits / tau, axis=1)                      # (B, num_classes)
    log_teacher = F.log_softmax(teacher_logits / tau, axis=1)
    return tau ** 2 * (log_teacher.exp() * (log_teacher - log_student)).mean()
