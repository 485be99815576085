"""Loops over messages compiled to C: sources from :mod:`symphony.wire` with the C types beside this file.

The modules here exist only where the build had a C compiler; :mod:`symphony.native` picks.
"""
