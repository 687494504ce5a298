"""How are weight files read and written?

    files         weights of any known origin, by name
    torch_file    PyTorch's files
    unpickle      pickles, without running their code
    container     arrays and a JSON text with a checksum
    writer        atomic writes
"""
