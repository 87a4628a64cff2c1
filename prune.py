"""One pruned model from a configuration; with ``-m``, a grid of them. The same command as ``mmp-prune``.

``python prune.py signal=product strategy=balanced``
``python prune.py -m signal=magnitude,gradient,product 'strategy=glob(*)'``
"""

from mmp.commands import prune

if __name__ == "__main__":
    prune()
