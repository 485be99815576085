"""Loops of the emulated device compiled to C: the source is beside this package, the C types are in it.

The modules here exist only where the build had a C compiler; :mod:`symphony.native` picks.
"""
