"""The loss as a function of the weights: curvature, planes, robust surfaces, connecting curves; any net, loss, data."""
