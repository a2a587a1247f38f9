"""UNIT: its training step and its runs, the data sets that it translates, and what these are worth."""
