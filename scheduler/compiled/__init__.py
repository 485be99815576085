"""The scheduling core compiled to C: the sources of :mod:`scheduler.core` with the C types beside this file.

The modules here exist only where the build had a C compiler; :mod:`scheduler.select` picks.
"""
