"""What does the process need?

    start          threads, BLAS, memory, the tie to the launcher
    command        errors for people, exit codes
    distributed    the same calls with one process and with many
"""
