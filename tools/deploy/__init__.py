"""How does a network leave?

    exports      a network as a folder of Paddle Inference or an ONNX file, checked
    engines      what computes an exported network
    simplify     the same network with fewer operations
    old_graph    the older form of Paddle's graphs
    rollout      attention of the class token
    batcher      requests of several clients as one batch
    web          requests and answers of the service
    page.html    its page
"""
