"""How does a run advance and resume?

    stepper       updates the weights: accumulate, scale, clip, skip, EMA
    fast          the same networks with fewer and cheaper operations, on a CPU
    threads       parts of a batch in several threads
    meter         sums, means and times
    folder        a run on disk: lock, checkpoints, weights files, log
    checkpoint    state of a run that its next step depends on
    log           lines for people, JSON lines for programs, curves and pictures for VisualDL
    signals       stops a run on a signal or a time limit
"""
