"""What does the process need?

    start             signals, threads, BLAS, memory; processes end with their launcher
    command           error messages and exit codes
    settings          keys of a configuration: declared, read from YAML, checked
    distributed       collectives that also work with one process
    lockstep          processes exchange failures before every batch
    job               starts and watches the processes of one machine
    rendezvous        the launchers of several machines: ranks, failures, restarts
    pool              tasks in several processes
    terminal          where progress bars are drawn, also for processes of a launcher
    progress          a bar on a terminal, lines elsewhere
    paddle_private    functions of Paddle that are not public
"""
