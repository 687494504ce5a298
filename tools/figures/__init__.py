"""What can be drawn?

    style           colours and fonts of all figures; sheets of images; how a figure is written
    style.mplstyle  the settings of Matplotlib
    curves          loss and accuracy of runs, from their logs
    schedule        learning rates of runs, and rates that logs print
    augment         what a recipe does to images
    mistakes        confusion matrix, and the most confident mistakes
    predictions     images with their predicted classes, for VisualDL
    rollout         attention rollout of the class token
    channels        dead and saturated channels of feature maps
"""
