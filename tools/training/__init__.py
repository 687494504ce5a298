"""How does a run advance and last?

    stepper       what steps the weights: accumulate, scale, clip, skip, average
    meter         what counts: sums, means, clock
    folder        where a run lives on disk: lock, checkpoints, weights files, log
    checkpoint    all that the next step of a run depends on
    log           lines for people, JSON lines for programs, scalars for VisualDL
    curves        loss and accuracy of runs over their epochs, drawn from their logs
    figures.mplstyle    how figures look
    signals       asked to stop: by a signal or by the clock of a job
"""
