"""What does the process need?

    start             signals, threads, BLAS, memory, the tie to the launcher
    command           errors for people, exit codes
    settings          keys of a configuration: declared, read from YAML, checked
    distributed       the same calls with one process and with many
    lockstep          processes that go on together or leave together
    job               the processes of one machine: started, watched, judged
    meeting           the launchers of several machines: ranks, attempts, one verdict
    paddle_private    functions of Paddle that are not public
"""
