"""What a fleet costs one server: costs measured once, then played through at any size.

Reads the costs from simulation/calibration.json and prints tables, the same on every machine.
--calibrate measures them here, on an embedded Valkey; --validate sets real clients beside the
model.
"""
