"""How does a run advance and last?

    checkpoint    all that the next step of a run depends on
    log           lines for people, JSON lines for programs, scalars for VisualDL
    signals       asked to stop: by a signal or by the clock of a job
"""
