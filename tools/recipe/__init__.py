"""What does a recipe add?

    augment      operations on one image: AutoAugment, RandAugment, jitter, erasing
    batch        from the loader's pixels to the network's input
    mixup        mixup and cutmix
    loss         cross entropy, distillation
    teacher      an exported program as the teacher
    optimizer    SGD and AdamW, what decays, clipping
    freeze       parameters that are not trained
    ema          exponential moving average of the weights
    precision    mixed precision, loss scale
"""
