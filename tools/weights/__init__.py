"""How are weight files read and written?

    files         weights of any known origin, by name
    torch_file    what torch.save wrote
    unpickle      pickles, without running code of them
    container     arrays and a JSON text, sealed by a checksum
    writer        files that are whole or absent
"""
