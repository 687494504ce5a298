"""How does a run advance and last?

    stepper       what steps the weights: accumulate, scale, clip, skip, average
    meter         what counts: sums, means, clock
    folder        where a run lives on disk: lock, checkpoints, weights files, log
    checkpoint    all that the next step of a run depends on
    log           lines for people, JSON lines for programs, scalars for VisualDL
    signals       asked to stop: by a signal or by the clock of a job
"""
