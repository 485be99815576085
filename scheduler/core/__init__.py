"""The scheduling core as a sans-I/O state machine; import it through :mod:`scheduler.select`."""
