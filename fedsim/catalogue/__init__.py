"""One row for each data set and each model, and how a name of somebody's own becomes their function."""
