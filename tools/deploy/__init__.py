"""How does a network leave?

    exports      write a network for Paddle Inference or as ONNX, and check the result
    engines      run an exported network
    fast         a network as a graph within one process, checked against the network
    predictions  a file with the predictions of single images; a check of the label order
    simplify     an equal network with fewer operations
    old_graph    graphs in the format of Paddle 2
    batcher      batches from concurrent requests
    web          the HTTP server
    page.html    the web page of the server
"""
