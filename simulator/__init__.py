"""The scheduling core and its rivals under a virtual clock: experiments, goodput, plots."""
