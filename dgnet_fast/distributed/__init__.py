"""Several processes as one program, under PyTorch's launcher: all of the package's collectives are here."""
