"""What can be drawn?

    style           colours and fonts of all figures; sheets of images; how a figure is written
    style.mplstyle  the settings of Matplotlib
    curves          loss and accuracy of runs, from their logs
    rollout         attention rollout of the class token
    channels        dead and saturated channels of feature maps
"""
