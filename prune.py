"""Prune one model or, with ``-m``, run a sweep. The same command as ``mmp-prune``.

``python prune.py signal=product strategy=balanced``
``python prune.py -m signal=magnitude,gradient,product 'strategy=glob(*)'``
"""

from mmp.commands import prune

if __name__ == "__main__":
    prune()
