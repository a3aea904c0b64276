"""Tables of what was measured, and is kept with the calibration."""

from simulation.calibration import Calibration
from simulation.table import Table, figure

__all__ = ["comparison", "growth"]


def growth(costs: Calibration) -> Table:
    """What one command costs by how many others there are."""
    sizes = ("10", "1000", "10000", "100000")
    rows = [
        [what, *(figure(some[size], "µs") if size in some else "" for size in sizes)]
        for what, some in costs.growth.items()
    ]
    head = ["one command", *(f"{int(size):,}" for size in sizes)]
    return Table(
        "growth", "What one command costs the server, by how many others there are", head, rows
    )


def comparison(costs: Calibration) -> Table:
    """The model beside real clients."""
    rows = [
        [what, figure(model, unit), figure(measured, unit)]
        for what, unit, model, measured in costs.real
    ]
    return Table("real", "The model, and real clients", ["", "model", "measured"], rows)
