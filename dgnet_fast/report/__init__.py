"""What a run leaves for its reader: picture grids, curves, tables, the environment, one page of it all."""

from dgnet_fast.report.curves import save_curves
from dgnet_fast.report.environment import collect_environment, write_environment
from dgnet_fast.report.grid import cell_origin, image_grid
from dgnet_fast.report.page import write_report
from dgnet_fast.report.tables import format_table, read_tables

__all__ = [
    "cell_origin",
    "collect_environment",
    "format_table",
    "image_grid",
    "read_tables",
    "save_curves",
    "write_environment",
    "write_report",
]
