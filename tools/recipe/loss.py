"""Training losses: cross entropy with labels or mixed targets, and distillation from a teacher.

Every loss is called with (outputs, targets, images). Outputs are the network's in training: logits
`[B, num_classes]`, or (logits, dist_logits) of a network with a distillation token. Targets are
labels, int64 `[B]`, or distributions, float32 `[B, num_classes]`.
"""

import paddle
from paddle.nn import functional as F


def logits_of(outputs):
    """Logits `[B, num_classes]` of outputs: the mean of two heads, as in evaluation."""
    return (outputs[0] + outputs[1]) / 2 if isinstance(outputs, (tuple, list)) else outputs


def labels_of(targets):
    """Labels int64 `[B]` of targets: for a mixed image the label with the larger share."""
    return targets if targets.ndim == 1 else targets.argmax(axis=1)


def hits(outputs, targets):
    """Whether the top-1 class of each image is its label (see labels_of): bool `[B]`."""
    return logits_of(outputs).detach().argmax(axis=1) == labels_of(targets)


class CrossEntropy:
    """Mean cross entropy of a batch.

    Args:
        smoothing: share of a label that is spread evenly over all classes. It applies to labels
            only; distributions are used unchanged (Mixup smooths its own).
    """

    def __init__(self, smoothing=0.0):
        self.smoothing = smoothing

    def __call__(self, outputs, targets, images=None):
        logits = logits_of(outputs)
        if targets.ndim == 1 and self.smoothing:
            targets = F.label_smooth(F.one_hot(targets, logits.shape[1]), epsilon=self.smoothing)
        return F.cross_entropy(logits, targets, soft_label=targets.ndim > 1)


class DistillationLoss:
    """Distillation from a teacher (Touvron et al., ICML 2021, section 4).

    (1 - alpha) * base_loss of the class head + alpha * distillation loss of the other head:

        hard  cross entropy with the teacher's top-1 class
        soft  tau ** 2 * KL(teacher || student) of softmax(logits / tau), averaged over images and
              classes as in the official DeiT code

    Args:
        base_loss: called with (logits, targets).
        teacher: images float32 `[B, 3, S, S]` to logits `[B, num_classes]`; called without
            gradients with the student's input, mixed and erased.
        kind: 'hard' or 'soft'.
        alpha: the weight of distillation, 0 to 1.
        tau: temperature of 'soft', above 0.

    Raises:
        ValueError: for an unknown kind; when called, for a network with one head if kind is
            'hard', as its targets could contradict each other. With 'soft' one head may learn
            both distributions, as in Hinton et al. (2015).
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
    log_teacher = F.log_softmax(teacher_logits / tau, axis=1)              # (B, num_classes)
    return tau ** 2 * (log_teacher.exp() * (log_teacher - log_student)).mean()
