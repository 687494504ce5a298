"""What does the process need?

    start          threads, BLAS, memory, the tie to the launcher
    command        errors for people, exit codes
    settings       keys of a configuration: declared, read from YAML, checked
    distributed    the same calls with one process and with many
"""
