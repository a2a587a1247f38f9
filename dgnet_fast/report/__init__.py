"""What a run leaves for its reader: logs, progress, picture grids, curves, tables, one page of it all; and how files are written."""
