"""Hooks that count, measure and trace what a client tells of: see `dsync.telemetry`.

Nothing is imported here: `dsync.metrics.prometheus` and `dsync.metrics.otel` each need an extra.
"""
