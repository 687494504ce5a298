"""How are weight files read and written?

    files         weights of any known origin, by name
    folder        a folder as timm publishes weights
    torch_file    PyTorch's files
    unpickle      pickles, without running their code
    container     arrays and a JSON text with a checksum
    writer        atomic writes
    download      one file over HTTPS, once
"""
