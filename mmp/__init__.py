"""Mix-and-Match Pruning: ten accuracy-sparsity trade-offs per signal, from one scoring pass.

The rooms, in the order data walks through them: ``layers``, ``ranges``, ``strategies``, ``signals``, ``criteria``,
``masks``, then ``models``, ``data``, ``store`` and ``report``. Nothing is imported here, so that each room costs
only what it needs.
"""
