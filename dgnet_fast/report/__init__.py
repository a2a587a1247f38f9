"""What a run leaves for its reader: logs, progress, grids of pictures, curves, tables, and one page with all of it.
Also how files are written.
"""
