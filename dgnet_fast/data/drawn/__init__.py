"""The built-in synthetic pedestrians: who they are, how they stand, where they are, and the data set of them."""
